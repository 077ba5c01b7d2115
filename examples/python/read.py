#!/usr/bin/env python3
"""Prints failures and dead letters, one JSON object a line, with confluent-kafka (pip install confluent-kafka).

    read.py BROKERS TOPIC…

A dead letter that came in parts is joined. It ends when it is at the end of each partition.
"""
import base64
import json
import sys

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException


def records(brokers, topics):
    """Yields the committed records of topics, in the order of each partition."""
    consumer = Consumer({
        "bootstrap.servers": brokers,
        "group.id": "rebound-example-python",
        "isolation.level": "read_committed",  # the default; it leaves out what a crash has cut short
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    })
    left = {(t, p) for t in topics for p in consumer.list_topics(t, timeout=10).topics[t].partitions}

    def from_the_beginning(consumer, partitions):
        for partition in partitions:
            partition.offset = OFFSET_BEGINNING
        consumer.assign(partitions)

    consumer.subscribe(topics, on_assign=from_the_beginning)
    while left:
        record = consumer.poll(30)
        if record is None:
            raise TimeoutError("nothing came for 30 s")
        if record.error() is None:
            yield record
        elif record.error().code() == KafkaError._PARTITION_EOF:
            left.discard((record.topic(), record.partition()))
        else:
            raise KafkaException(record.error())
    consumer.close()


def joined(records):
    """Yields topic, key, headers and value of each message, those that came in parts as one."""
    begun = {}
    for record in records:
        headers = {name: value.decode() for name, value in record.headers() or []}
        parts = begun.setdefault((headers["id"], headers.get("run")), [])
        parts.append(record.value())
        if len(parts) == int(headers.pop("parts", 1)):
            headers.pop("part", None)
            yield record.topic(), record.key().decode(), headers, b"".join(parts)
            del begun[headers["id"], headers.get("run")]


def main():
    brokers, topics = sys.argv[1], sys.argv[2:]
    for topic, key, headers, value in joined(records(brokers, topics)):
        message = {"topic": topic, "key": key, "headers": headers}
        try:
            message["value"] = value.decode()
        except UnicodeDecodeError:  # a dead letter is what FullStory sent, whatever that was
            message["value_base64"] = base64.b64encode(value).decode()
        print(json.dumps(message, ensure_ascii=False))


if __name__ == "__main__":
    main()
