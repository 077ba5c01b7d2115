#!/usr/bin/env python3
"""Compares what a consumer read with what the simulated FullStory API holds, byte for byte. It shares no code with
rebound: everything that the contract says of a message is written down here once more.

    compare.py [--run N] [--kind events] API JOB… < messages.jsonl

Messages come as kcat -J prints them (or rebound --sink stdout): read committed, in the order of each partition, dead
letters and failed users together.
"""
import base64
import json
import re
import sys
import urllib.parse
import urllib.request

TOKEN = re.compile(rb'[ \t\r\n]+|"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^ \t\r\n"{}\[\]:,]+', re.DOTALL)


def utf8(raw):
    """Text with U+FFFD for each byte that is not UTF-8."""
    text, at = [], 0
    while at < len(raw):
        try:
            text.append(raw[at:].decode("utf-8"))
            break
        except UnicodeDecodeError as e:
            text.append(raw[at : at + e.start].decode("utf-8") + "\ufffd")
            at += e.start + 1
    return "".join(text)


def compact(raw):
    return b"".join(t for t in TOKEN.findall(raw) if not t.isspace())


def members(raw):
    """The members of a JSON object: name and raw value, the last of each name."""
    tokens = [t for t in TOKEN.findall(raw) if not t.isspace()]
    found, depth, name, value = {}, 0, None, []
    for i, t in enumerate(tokens):
        if depth == 1 and name is None and t.startswith(b'"'):
            name, value = text_of(t), []
            continue
        if t in b"{[" and len(t) == 1:
            depth += 1
            if depth == 1:
                continue
        if t in b"}]" and len(t) == 1:
            depth -= 1
        if depth == 0 or depth == 1 and t == b",":
            if name is not None:
                found[name] = b"".join(value)
            name = None
        elif not (depth == 1 and t == b":"):
            value.append(t)
    return found


def text_of(literal):
    """The text of a JSON string; lone surrogates become U+FFFD."""
    text = json.loads(utf8(literal), strict=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def quoted(text):
    return json.dumps(text, ensure_ascii=False)


def snake(code):
    words = re.sub(r"(?<=[^\W_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", code)
    return "_".join(w for w in re.split(r"[\W_]+", words.lower()) if w) or "unknown"


def expected(job, run, index, raw, subject):
    """Topic kind, key, headers and value of a result's message."""
    ident = f"{job}/{index}"
    dead = lambda reason: ("dead", job, {"job": job, "id": ident, "run": run, "reason": reason}, raw)
    if not raw.lstrip().startswith(b"{"):
        return dead("not_an_object")
    result = members(raw)
    request = result.get(subject, b"null")
    if not request.startswith(b"{"):
        return dead("no_" + subject)
    code, message = result.get("code", b""), result.get("message", b"")
    code = snake(text_of(code)) if code.startswith(b'"') else "unknown"
    message = " ".join(text_of(message).split()) if message.startswith(b'"') else ""
    user = request if subject == "user" else members(request).get("user", b"{}")
    uid = members(user).get("uid", b"") if user.startswith(b"{") else b""
    uid = text_of(uid) if uid.startswith(b'"') else ""
    value = f'{{"job_id":{quoted(job)},"index":{index},"code":{quoted(code)},"message":{quoted(message)},"{subject}":'
    value = value.encode() + utf8(request).encode()
    if subject == "event" and "shared" in result:
        value += b',"shared":' + utf8(result["shared"]).encode()
    value += b"}"
    if len(value) > (1 << 20) - 2000:
        return dead("too_large")
    headers = {"job": job, "code": code, "id": ident, "run": run, "content-type": "application/json",
               "schema": f"rebound.failed-{subject}.v1"}
    return "user", uid or job, headers, value


def truth(api, job, kind):
    url = f"{api}/_simulator/jobs/{urllib.parse.quote(job, safe='')}/failures?kind={kind}"
    with urllib.request.urlopen(url) as lines:
        for line in lines:
            line = json.loads(line)
            yield line["index"], base64.b64decode(line["result"])


def read(lines, jobs, run):
    """The messages of the jobs' run, parts joined: by job and index. And what is wrong with them already."""
    got, last, count, errors = {job: {} for job in jobs}, {}, dict.fromkeys(jobs, 0), {job: [] for job in jobs}
    for line in lines:
        m = json.loads(line)
        headers = m["headers"]
        if isinstance(headers, list):
            headers = dict(zip(headers[::2], headers[1::2]))
        job = headers.get("job")
        if job not in got or headers.get("run") != run:
            continue
        count[job] += 1
        kind = "dead" if m["topic"].endswith(".dead-letter") else "user"
        value = m.get("payload", m.get("value"))
        value = base64.b64decode(m["value_base64"]) if value is None else value.encode("utf-8", "surrogateescape")
        index = int(headers["id"].rsplit("/", 1)[1])
        part, _ = int(headers.pop("part", 0)), headers.pop("parts", 0)
        place = (job, kind, m["key"])
        if last.get(place, (-1, 0)) >= (index, part):
            errors[job].append(f"{headers['id']} comes after {last[place]} with the same key")
        last[place] = (index, part)
        if part > 1:
            got[job][index] = got[job][index][:3] + (got[job][index][3] + value,)
        elif index in got[job]:
            errors[job].append(f"{headers['id']} comes twice")
        else:
            got[job][index] = (kind, m["key"], headers, value)
    return got, count, errors


def main():
    arguments, run, kind = sys.argv[1:], "1", "users"
    while arguments[0] in ("--run", "--kind"):
        if arguments[0] == "--run":
            run = arguments[1]
        else:
            kind = arguments[1]
        arguments = arguments[2:]
    api, jobs = arguments[0], arguments[1:]
    got, read_count, errors = read(sys.stdin, jobs, run)
    total, failed = 0, False
    for job in jobs:
        count, wrong, have = 0, errors[job], got[job]
        for index, raw in truth(api, job, kind):
            count += 1
            want, one = expected(job, run, index, raw, kind.removesuffix("s")), have.pop(index, None)
            if one is None:
                wrong.append(f"{job}/{index} is missing")
            elif one != want:
                wrong.append(f"{job}/{index} differs:\n  {str(one)[:600]}\nis not\n  {str(want)[:600]}")
        wrong += [f"{job}/{index} is not expected" for index in have]
        failed |= bool(wrong) or count == 0
        total += count
        if wrong or len(jobs) == 1:
            print(f"{job}: {read_count[job]} messages read, {count} failures expected, {len(wrong)} errors")
        for error in wrong[:5]:
            print(" ", error)
    print(f"{len(jobs)} jobs with {total} failures:", "NOT ALL RIGHT" if failed else "each is there once, byte for byte")
    sys.exit(1 if failed else 0)


main()
