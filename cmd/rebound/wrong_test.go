package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"rebound/internal/simulator"
)

// TestWhatGoesWrongIsSaid is the table of wrong inputs: each is answered by the
// right exit status and by a text that says what is wrong, where, and what to
// do next.
func TestWhatGoesWrongIsSaid(t *testing.T) {
	w := newWorld(t, simulator.Options{APIKey: "the right key"})
	w.env["FULLSTORY_API_KEY"] = "the right key"
	w.conjure("job=", 100, 10)
	w.run([]string{"run", "job="}).must(t, 0) // makes the topics
	closed := closedPort(t)
	empty := filepath.Join(t.TempDir(), "empty")
	os.WriteFile(empty, nil, 0o600)
	notPEM := filepath.Join(t.TempDir(), "not.pem")
	os.WriteFile(notPEM, []byte("no certificate"), 0o600)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	taken := listener.Addr().String()
	patience := "FULLSTORY_RETRY_TIMEOUT=300ms KAFKA_RETRY_TIMEOUT=300ms"

	for _, c := range []struct {
		name      string
		arguments string
		changes   string // of the environment
		status    int
		says      []string
	}{
		{"no arguments at all", "", "", 0, nil},
		{"an unknown command", "rnu job=", "", 2, []string{`no command "rnu"`, "--help"}},
		{"an unknown flag", "run --replya job=", "", 2, []string{"--replya", `"rebound run --help"`}},
		{"an unknown sink", "run --sink file job=", "", 2, []string{"--sink", "kafka or stdout"}},
		{"no job id", "run", "", 2, []string{"no job id given", "--help"}},
		{"an empty job id", "run ''", "", 2, []string{"job id is empty"}},
		{"a job id with a space", "run 'a b'", "", 2, []string{`"a b"`, "white space"}},
		{"a job id that is a path", "run ..", "", 2, []string{`".."`, "no job id"}},
		{"a file that is not there", "run --jobs-file /no/such/file", "", 2, []string{"--jobs-file", "/no/such/file"}},
		{"a directory as the file", "run --jobs-file /", "", 2, []string{"--jobs-file", "directory"}},
		{"arguments where none are taken", "jobs x", "", 2, []string{`"x"`, "no arguments"}},
		{"a state that there is not", "jobs --state finished", "", 2, []string{"--state", "running, done, incomplete or failed"}},
		{"a time that is none", "jobs --since yesterday", "", 2, []string{"--since", "yesterday", "36h"}},

		{"everything missing at once", "run job=", "FULLSTORY_API_KEY= KAFKA_BROKERS=", 2,
			[]string{"2 settings are wrong", "FULLSTORY_API_KEY: missing", "KAFKA_BROKERS: missing"}},
		{"many wrong settings at once", "run job=",
			"FULLSTORY_RATE_LIMIT=fast FULLSTORY_RATE_BURST=0 COMMIT_INTERVAL=1 KAFKA_DELIVERY=twice KAFKA_COMPRESSION=brotli KAFKA_TLS=maybe LOG_LEVEL=loud JOB_CONCURRENCY=-1", 2,
			[]string{"8 settings are wrong", "FULLSTORY_RATE_LIMIT: \"fast\" is no number", "FULLSTORY_RATE_BURST: 0 is not between 1", "COMMIT_INTERVAL: \"1\" is no duration: write it like",
				"KAFKA_DELIVERY: \"twice\" is none of exactly-once, at-least-once", "KAFKA_COMPRESSION", "KAFKA_TLS: \"maybe\" is no truth value", "LOG_LEVEL", "JOB_CONCURRENCY"}},
		{"an HTTP address without a port", "serve", "HTTP_ADDR=localhost", 2, []string{"HTTP_ADDR", "127.0.0.1:8080"}},
		{"an HTTP address that is taken", "serve", "HTTP_ADDR=" + taken, 1, []string{"HTTP_ADDR", "address already in use", "free address"}},
		{"two HTTP tokens", "serve", "HTTP_TOKEN=a HTTP_TOKEN_FILE=" + empty, 2, []string{"HTTP_TOKEN: set it or HTTP_TOKEN_FILE, not both"}},
		{"a jobs topic that is another's", "serve", "KAFKA_JOBS_TOPIC=t KAFKA_TOPIC=t", 2, []string{"KAFKA_JOBS_TOPIC", "the same topic as KAFKA_TOPIC"}},
		{"serve with job ids", "serve job=", "", 2, []string{"no arguments"}},
		{"traces in a form that is not spoken", "run job=", "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1 OTEL_EXPORTER_OTLP_PROTOCOL=grpc", 2, []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"}},
		{"a flag that is wrong", "run --commit-interval 5 job=", "", 2, []string{"COMMIT_INTERVAL", `"5" is no duration`}},
		{"an open transaction for too long", "run job=", "COMMIT_INTERVAL=1m", 2, []string{"COMMIT_INTERVAL", "hold back the readers"}},
		{"a base URL without a scheme", "run job=", "FULLSTORY_BASE_URL=api.fullstory.com", 2, []string{"FULLSTORY_BASE_URL", "https://api.fullstory.com"}},
		{"plain http to another host", "run job=", "FULLSTORY_BASE_URL=http://api.fullstory.com", 2, []string{"FULLSTORY_BASE_URL", "FULLSTORY_ALLOW_HTTP"}},
		{"key and key file", "run job=", "FULLSTORY_API_KEY_FILE=/tmp/x", 2, []string{"FULLSTORY_API_KEY", "not both"}},
		{"a key file that is not there", "run job=", "FULLSTORY_API_KEY= FULLSTORY_API_KEY_FILE=/no/such/key", 2, []string{"FULLSTORY_API_KEY_FILE", "/no/such/key"}},
		{"a key file that is empty", "run job=", "FULLSTORY_API_KEY= FULLSTORY_API_KEY_FILE=" + empty, 2, []string{"FULLSTORY_API_KEY_FILE", "is empty"}},
		{"brokers without a port", "run job=", "KAFKA_BROKERS=kafka", 2, []string{"KAFKA_BROKERS", "kafka-1:9092"}},
		{"a topic name that is none", "run job=", "KAFKA_TOPIC=a/b", 2, []string{"KAFKA_TOPIC", "no topic name"}},
		{"the same topic twice", "run job=", "KAFKA_PROGRESS_TOPIC=same KAFKA_TOPIC=same", 2, []string{"KAFKA_PROGRESS_TOPIC", "same topic as KAFKA_TOPIC"}},
		{"TLS files without TLS", "run job=", "KAFKA_TLS_CA_FILE=" + notPEM, 2, []string{"KAFKA_TLS", "KAFKA_TLS=true"}},
		{"a CA file that is no PEM", "run job=", "KAFKA_TLS=true KAFKA_TLS_CA_FILE=" + notPEM, 2, []string{"KAFKA_TLS_CA_FILE", "no PEM certificate"}},
		{"half a client certificate", "run job=", "KAFKA_TLS=true KAFKA_TLS_CERT_FILE=" + notPEM, 2, []string{"KAFKA_TLS_KEY_FILE", "missing"}},
		{"a mechanism that there is not", "run job=", "KAFKA_SASL_MECHANISM=kerberos", 2, []string{"KAFKA_SASL_MECHANISM", "scram-sha-512"}},
		{"a mechanism without a password", "run job=", "KAFKA_SASL_MECHANISM=plain KAFKA_SASL_USERNAME=u", 2, []string{"KAFKA_SASL_PASSWORD", "missing"}},

		{"a wrong key", "run wrong=", "FULLSTORY_API_KEY=secret-canary", 1, []string{"job wrong=", "401", "unauthorized", "FULLSTORY_API_KEY"}},
		{"a job that FullStory does not know", "run unknown=", "", 1, []string{"job unknown=", "404", "check the job id", "FULLSTORY_BASE_URL"}},
		{"the API is down", "run down=", "FULLSTORY_RETRY_TIMEOUT=300ms FULLSTORY_BASE_URL=http://" + closed, 1,
			[]string{"job down=", "FULLSTORY_RETRY_TIMEOUT", "connection refused", "run the job again"}},
		{"the brokers are down", "run other=", patience + " KAFKA_BROKERS=" + closed, 1, []string{closed, "connection refused", "still failing after"}},
		{"the broker's host is unknown", "run other=", patience + " KAFKA_BROKERS=no-such-host.invalid:9092", 1, []string{"no-such-host.invalid"}},
		{"TLS to a plain port", "run other=", patience + " KAFKA_TLS=true", 1, []string{"KAFKA_TLS"}},
		{"topics that are not there", "run other=", "KAFKA_TOPIC=missing KAFKA_CREATE_TOPICS=false", 1,
			[]string{"no topic missing", "missing.progress", "KAFKA_CREATE_TOPICS=true"}},
		{"more replicas than brokers", "run other=", "KAFKA_TOPIC=replicas KAFKA_REPLICATION_FACTOR=99", 1,
			[]string{"replicas", "KAFKA_REPLICATION_FACTOR=99"}},
		{"verify what was never published", "verify other=", "", 1, []string{"other=", "never published", "rebound run other="}},
		{"verify without topics", "verify job=", "KAFKA_TOPIC=missing", 1, []string{"no topic missing"}},
		{"check with a wrong key", "check", "FULLSTORY_API_KEY=secret-canary", 1, []string{"FAILED  FullStory", "401", "FULLSTORY_API_KEY", "ok      Kafka"}},
		{"check with brokers down", "check", patience + " KAFKA_BROKERS=" + closed, 1, []string{"ok      FullStory", "FAILED  Kafka", "connection refused"}},
		{"check without topics", "check", "KAFKA_TOPIC=missing KAFKA_CREATE_TOPICS=false", 1, []string{"FAILED  topic missing", "KAFKA_CREATE_TOPICS=true"}},
		{"check where topics would be made", "check", "KAFKA_TOPIC=missing", 0, []string{"ok      topic missing: does not exist; it will be created"}},
		{"check that finds everything fine", "check job=", "", 0, []string{"ok      job job=: has 100 failures", "ok      transactions: are allowed"}},
		{"simulate with a wrong fault", "simulate --fault fire=1", "", 2, []string{"--fault", `"fire"`, "garbage"}},
		{"simulate with a wrong job", "simulate --job a", "", 2, []string{"--job", "ID:FAILURES"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := w.run(splitArguments(c.arguments), strings.Fields(c.changes)...)
			said := r.stdout + r.stderr
			if r.status != c.status {
				t.Errorf("exit status %d, want %d; it says\n%s", r.status, c.status, said)
			}
			for _, text := range c.says {
				if !strings.Contains(said, text) {
					t.Errorf("it does not say %q, but\n%s", text, said)
				}
			}
			if strings.Contains(said, "canary") || strings.Contains(said, "panic") || strings.Contains(said, "goroutine") {
				t.Errorf("it shows what it must not:\n%s", said)
			}
		})
	}
}

// splitArguments splits a command line; ” quotes.
func splitArguments(line string) []string {
	var arguments []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			arguments = append(arguments, part)
		} else {
			arguments = append(arguments, strings.Fields(part)...)
		}
	}
	return arguments
}

// closedPort returns an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func TestAFullDiskAndAClosedPipeAreSaid(t *testing.T) {
	w := newWorld(t, simulator.Options{})
	w.conjure("job=", 20_000, 1000)

	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("this system has no /dev/full")
	}
	defer full.Close()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader.Close()
	defer writer.Close()
	for _, c := range []struct {
		name   string
		stdout *os.File
		says   string
	}{
		{"a full disk", full, "no space left on device: the file is cut short; make room and run again"},
		{"a closed pipe", writer, "standard output was closed before everything was written"},
	} {
		t.Run(c.name, func(t *testing.T) {
			command := w.command(t.Context(), []string{"run", "--sink", "stdout", "job="})
			var stderr bytes.Buffer
			command.Stdout, command.Stderr = c.stdout, &stderr
			r := finish(t, command, command.Run(), new(bytes.Buffer), &stderr).must(t, 1)
			if !strings.Contains(r.stderr, c.says) || !strings.Contains(r.stderr, "job=") {
				t.Errorf("it says\n%s", r.stderr)
			}
		})
	}
}

// allow returns an ACL for everything whose name begins with name.
func allow(resource kmsg.ACLResourceType, name string, operation kmsg.ACLOperation) kfake.ACL {
	return kfake.ACL{Resource: resource, Name: name, Pattern: kmsg.ACLResourcePatternTypePrefixed, Operation: operation, Allow: true}
}

// Each permission that is missing is named. The embedded cluster checks ACLs as
// Kafka does.
func TestMissingPermissionsAreNamed(t *testing.T) {
	const topic, id = kmsg.ACLResourceTypeTopic, kmsg.ACLResourceTypeTransactionalId
	minimum := map[string]kfake.ACL{
		"Describe":                allow(topic, "acl", kmsg.ACLOperationDescribe),
		"DescribeConfigs":         allow(topic, "acl", kmsg.ACLOperationDescribeConfigs),
		"Write":                   allow(topic, "acl", kmsg.ACLOperationWrite),
		"Read":                    allow(topic, "acl.progress", kmsg.ACLOperationRead),
		"Create":                  allow(topic, "acl", kmsg.ACLOperationCreate),
		"transactional.id":        allow(id, "acl.progress", kmsg.ACLOperationWrite),
		"transactional.id (read)": allow(id, "acl.progress", kmsg.ACLOperationDescribe),
	}
	for _, c := range []struct {
		missing string
		status  int
		says    string
	}{
		{"", 0, ""},
		{"DescribeConfigs", 0, "The ACL DescribeConfigs on the topic allows it"},
		{"Create", 1, "grant the ACL Create"},
		{"Write", 1, "Write"},
		{"Read", 1, "Read on topic acl.progress"},
		{"transactional.id", 1, "transactional ids"},
	} {
		t.Run("without "+c.missing, func(t *testing.T) {
			t.Parallel()
			var acls []kfake.ACL
			for name, acl := range minimum {
				if name != c.missing && !strings.HasPrefix(name, c.missing+" ") || c.missing == "" {
					acls = append(acls, acl)
				}
			}
			w := newWorld(t, simulator.Options{}, kfake.EnableSASL(), kfake.EnableACLs(),
				kfake.Superuser("PLAIN", "admin", "admin"), kfake.User("PLAIN", "rebound", "secret-canary", acls...))
			for name, value := range map[string]string{
				"KAFKA_TOPIC": "acl", "KAFKA_SASL_MECHANISM": "plain", "KAFKA_SASL_USERNAME": "rebound", "KAFKA_SASL_PASSWORD": "secret-canary",
				"KAFKA_RETRY_TIMEOUT": "2s",
			} {
				w.env[name] = value
			}
			w.conjure("job=", 10, 10)
			if c.missing == "Read" {
				w.run([]string{"run", "job="}) // there is something to read then
			}
			r := w.run([]string{"run", "job="}).must(t, c.status)
			if !strings.Contains(r.stderr, c.says) {
				t.Errorf("it does not say %q, but\n%s", c.says, r.stderr)
			}
			if strings.Contains(r.stdout+r.stderr, "canary") {
				t.Errorf("it shows the password:\n%s", r.stderr)
			}
		})
	}
}

func TestServeNeedsItsGroup(t *testing.T) {
	w := newWorld(t, simulator.Options{}, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "admin", "admin"),
		kfake.User("PLAIN", "rebound", "secret-canary",
			allow(kmsg.ACLResourceTypeTopic, "acl", kmsg.ACLOperationAll), allow(kmsg.ACLResourceTypeTransactionalId, "acl", kmsg.ACLOperationAll)))
	for name, value := range map[string]string{
		"KAFKA_TOPIC": "acl", "KAFKA_GROUP_ID": "another", "KAFKA_SASL_MECHANISM": "plain", "KAFKA_SASL_USERNAME": "rebound", "KAFKA_SASL_PASSWORD": "secret-canary",
		"HTTP_ADDR": "127.0.0.1:0",
	} {
		w.env[name] = value
	}
	r := w.run([]string{"serve"}).must(t, 1)
	if !strings.Contains(r.stderr, "Read on the consumer group another (KAFKA_GROUP_ID)") {
		t.Errorf("serve says\n%s", r.stderr)
	}
}

func TestAWrongPasswordIsSaid(t *testing.T) {
	for _, mechanism := range []string{"plain", "scram-sha-256", "scram-sha-512"} {
		t.Run(mechanism, func(t *testing.T) {
			w := newWorld(t, simulator.Options{}, kfake.EnableSASL(), kfake.Superuser(strings.ToUpper(mechanism), "rebound", "right"))
			w.conjure("job=", 10, 10)
			w.env["KAFKA_SASL_MECHANISM"], w.env["KAFKA_SASL_USERNAME"] = mechanism, "rebound"
			r := w.run([]string{"run", "job="}, "KAFKA_SASL_PASSWORD=wrong-canary", "KAFKA_RETRY_TIMEOUT=2s").must(t, 1)
			if !strings.Contains(r.stderr, "KAFKA_SASL_PASSWORD") || strings.Contains(r.stderr, "canary") {
				t.Errorf("it says\n%s", r.stderr)
			}
			w.run([]string{"run", "job="}, "KAFKA_SASL_PASSWORD=right").must(t, 0)
		})
	}
}
