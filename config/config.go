// Package config reads rebound's settings from the environment, and from flags
// that override it, into one struct. Every wrong setting is reported at once,
// by its variable, with what would be right.
package config

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sethvargo/go-envconfig"

	"rebound/pipeline"
)

// Config holds every setting. Its tags are the one place where a setting's
// variable, default and meaning stand: env is read by go-envconfig, doc and
// shown (a default that is worked out) fill the README's table.
type Config struct {
	FullStoryAPIKey         Secret        `env:"FULLSTORY_API_KEY" shown:"required" doc:"the API key, sent as it is given"`
	FullStoryAPIKeyFile     string        `env:"FULLSTORY_API_KEY_FILE" doc:"a file that holds the key (container secrets)"`
	FullStoryBaseURL        string        `env:"FULLSTORY_BASE_URL,default=https://api.fullstory.com" doc:"the data centre; the EU's is https://api.eu1.fullstory.com"`
	FullStoryAllowHTTP      bool          `env:"FULLSTORY_ALLOW_HTTP,default=false" doc:"allow plain http to a host that is not loopback"`
	FullStoryRateLimit      float64       `env:"FULLSTORY_RATE_LIMIT,default=10" doc:"requests a second, for the whole process; in serve for the whole group"`
	FullStoryRateBurst      int           `env:"FULLSTORY_RATE_BURST,default=10" doc:"requests that may leave at once after a pause"`
	FullStoryRequestTimeout time.Duration `env:"FULLSTORY_REQUEST_TIMEOUT,default=30s" doc:"one request, headers and body"`
	FullStoryRetryTimeout   time.Duration `env:"FULLSTORY_RETRY_TIMEOUT,default=15m" doc:"how long one page may keep failing in a way that is worth another try"`
	FullStoryJobTimeout     time.Duration `env:"FULLSTORY_JOB_TIMEOUT,default=24h" doc:"how long to wait for a job that is still processing"`

	KafkaBrokers           []string      `env:"KAFKA_BROKERS" shown:"required" doc:"comma-separated host:port"`
	KafkaTopic             string        `env:"KAFKA_TOPIC,default=fullstory.user-import-errors" doc:"failed users"`
	KafkaDeadLetterTopic   string        `env:"KAFKA_DEAD_LETTER_TOPIC" shown:"${KAFKA_TOPIC}.dead-letter" doc:"what could not be made a failed user"`
	KafkaProgressTopic     string        `env:"KAFKA_PROGRESS_TOPIC" shown:"${KAFKA_TOPIC}.progress" doc:"compacted; how far each job is"`
	KafkaJobsTopic         string        `env:"KAFKA_JOBS_TOPIC" shown:"${KAFKA_TOPIC}.jobs" doc:"where serve takes jobs from"`
	KafkaEventsTopic       string        `env:"KAFKA_EVENTS_TOPIC" shown:"fullstory.event-import-errors; ${KAFKA_TOPIC}.events where that is set" doc:"failed events (--kind events); their dead letters and progress are on topics of this name with .dead-letter and .progress"`
	KafkaGroupID           string        `env:"KAFKA_GROUP_ID,default=rebound" doc:"the consumer group of serve's instances"`
	KafkaDelivery          string        `env:"KAFKA_DELIVERY,default=exactly-once" doc:"exactly-once, or at-least-once for clusters that allow no transactions"`
	KafkaCompression       string        `env:"KAFKA_COMPRESSION,default=lz4" doc:"none, gzip, snappy, lz4 or zstd"`
	KafkaCreateTopics      bool          `env:"KAFKA_CREATE_TOPICS,default=true" doc:"make missing topics at start-up"`
	KafkaTopicPartitions   int           `env:"KAFKA_TOPIC_PARTITIONS,default=6" doc:"partitions of a topic that is made"`
	KafkaReplicationFactor int           `env:"KAFKA_REPLICATION_FACTOR,default=0" shown:"broker's" doc:"replicas of a topic that is made"`
	KafkaTLS               bool          `env:"KAFKA_TLS,default=false" doc:"encrypt connections to the brokers"`
	KafkaTLSCAFile         string        `env:"KAFKA_TLS_CA_FILE" doc:"PEM certificates to trust instead of the system's"`
	KafkaTLSCertFile       string        `env:"KAFKA_TLS_CERT_FILE" doc:"PEM client certificate (mutual TLS)"`
	KafkaTLSKeyFile        string        `env:"KAFKA_TLS_KEY_FILE" doc:"PEM key of the client certificate"`
	KafkaSASLMechanism     string        `env:"KAFKA_SASL_MECHANISM" shown:"none" doc:"plain, scram-sha-256, scram-sha-512 or aws-msk-iam"`
	KafkaSASLUsername      string        `env:"KAFKA_SASL_USERNAME" doc:"for plain and scram"`
	KafkaSASLPassword      Secret        `env:"KAFKA_SASL_PASSWORD" doc:"for plain and scram"`
	KafkaSASLPasswordFile  string        `env:"KAFKA_SASL_PASSWORD_FILE" doc:"a file that holds the password"`
	KafkaRetryTimeout      time.Duration `env:"KAFKA_RETRY_TIMEOUT,default=15m" doc:"how long the brokers may keep failing in a way that is worth another try"`

	KafkaCloudEvents  bool     `env:"KAFKA_CLOUDEVENTS,default=false" doc:"give failures the headers of a CloudEvent, too (binary mode)"`
	FieldsDrop        []string `env:"FIELDS_DROP" doc:"comma-separated JSON pointers into user, such as /email or /properties/*/phone: members that are left out"`
	FieldsHash        []string `env:"FIELDS_HASH" doc:"the same, for members that are replaced by a keyed hash (HMAC-SHA-256)"`
	FieldsHashKey     Secret   `env:"FIELDS_HASH_KEY" doc:"the key of those hashes, 16 bytes or more; the same in all instances"`
	FieldsHashKeyFile string   `env:"FIELDS_HASH_KEY_FILE" doc:"a file that holds that key"`

	CommitInterval  time.Duration `env:"COMMIT_INTERVAL,default=1s" doc:"pages that arrive in this time are committed together"`
	JobConcurrency  int           `env:"JOB_CONCURRENCY,default=8" doc:"jobs in flight in one process"`
	ShutdownTimeout time.Duration `env:"SHUTDOWN_TIMEOUT,default=25s" doc:"after SIGTERM or SIGINT: the time to commit and leave"`
	HTTPAddr        string        `env:"HTTP_ADDR,default=127.0.0.1:8080" doc:"serve's status page, metrics and job intake; empty: none"`
	HTTPToken       Secret        `env:"HTTP_TOKEN" doc:"bearer token for job intake; without one only a loopback HTTP_ADDR takes jobs"`
	HTTPTokenFile   string        `env:"HTTP_TOKEN_FILE" doc:"a file that holds the token"`
	LogLevel        string        `env:"LOG_LEVEL,default=info" doc:"debug, info, warn or error"`
	LogFormat       string        `env:"LOG_FORMAT" shown:"text on a terminal, else json" doc:"text or json"`
}

// Delivery guarantees: values of KAFKA_DELIVERY.
const (
	ExactlyOnce = "exactly-once"
	AtLeastOnce = "at-least-once"
)

// Need says which required settings a command cannot do without.
type Need int

const (
	// FullStory needs the API's key.
	FullStory Need = 1 << iota
	// Kafka needs the brokers.
	Kafka
)

// Error lists every setting that is wrong.
type Error struct {
	// Problems holds a line a setting, each beginning with its variable.
	Problems []string
}

func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return e.Problems[0]
	}
	return fmt.Sprintf("%d settings are wrong:\n  %s", len(e.Problems), strings.Join(e.Problems, "\n  "))
}

// Load reads the settings that lookup knows, fills in defaults, and checks all
// of them; need says which must be there. The error is an [Error].
func Load(ctx context.Context, lookup func(variable string) (string, bool), need Need) (*Config, error) {
	c, problems := decode(ctx, lookup)
	c.KafkaDeadLetterTopic = orElse(c.KafkaDeadLetterTopic, c.KafkaTopic+".dead-letter")
	if value, ok := lookup("HTTP_ADDR"); ok && strings.TrimSpace(value) == "" {
		c.HTTPAddr = "" // unlike elsewhere, empty says something
	}
	c.KafkaJobsTopic = orElse(c.KafkaJobsTopic, c.KafkaTopic+".jobs")
	c.KafkaProgressTopic = orElse(c.KafkaProgressTopic, c.KafkaTopic+".progress")
	if c.KafkaEventsTopic == "" {
		c.KafkaEventsTopic = "fullstory.event-import-errors"
		if topic, ok := lookup("KAFKA_TOPIC"); ok && strings.TrimSpace(topic) != "" {
			c.KafkaEventsTopic = c.KafkaTopic + ".events"
		}
	}
	v := validation{config: c, problems: problems}
	v.validate(need)
	if len(v.problems) > 0 {
		return nil, &Error{v.inOrder()}
	}
	return c, nil
}

func orElse(value, other string) string {
	if value == "" {
		return other
	}
	return value
}

// decode reads what it can. go-envconfig stops at the first value that it
// cannot read, so each such variable is noted, hidden, and the rest read anew.
// An empty variable counts as one that is not set.
func decode(ctx context.Context, lookup func(string) (string, bool)) (*Config, map[string]string) {
	problems := make(map[string]string)
	for {
		c := new(Config)
		err := envconfig.ProcessWith(ctx, &envconfig.Config{
			Target: c,
			Lookuper: envconfig.LookuperFunc(func(variable string) (string, bool) {
				value, ok := lookup(variable)
				if value = strings.TrimSpace(value); value == "" || problems[variable] != "" {
					return "", false
				}
				return value, ok
			}),
		})
		if err == nil {
			return c, problems
		}
		name, _, _ := strings.Cut(err.Error(), ":")
		field, ok := reflect.TypeFor[Config]().FieldByName(name)
		variable := variableOf(field)
		if !ok || problems[variable] != "" {
			problems[variable] = err.Error() // a mistake in the struct itself
			return c, problems
		}
		value, _ := lookup(variable)
		problems[variable] = fmt.Sprintf("%q is no %s", value, wanted(field.Type))
	}
}

// wanted says what a setting of the type looks like.
func wanted(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration: write it like 500ms, 30s, 15m or 24h"
	case reflect.TypeFor[bool]():
		return "truth value: write true or false"
	case reflect.TypeFor[int]():
		return "whole number: write it like 8"
	case reflect.TypeFor[float64]():
		return "number: write it like 10 or 0.5"
	}
	return t.String()
}

func variableOf(field reflect.StructField) string {
	variable, _, _ := strings.Cut(field.Tag.Get("env"), ",")
	return variable
}

// validation gathers what is wrong with a config, a line a variable.
type validation struct {
	config   *Config
	problems map[string]string
}

// inOrder returns the problems in the order of the settings table.
func (v *validation) inOrder() []string {
	var lines []string
	for _, s := range Settings() {
		if problem, ok := v.problems[s.Variable]; ok {
			lines = append(lines, s.Variable+": "+problem)
		}
	}
	return lines
}

// wrong notes a problem; the first one of a variable stays.
func (v *validation) wrong(variable, format string, args ...any) {
	if _, ok := v.problems[variable]; !ok {
		v.problems[variable] = fmt.Sprintf(format, args...)
	}
}

func (v *validation) validate(need Need) {
	c := v.config
	v.secret(&c.FullStoryAPIKey, "FULLSTORY_API_KEY", c.FullStoryAPIKeyFile)
	v.secret(&c.KafkaSASLPassword, "KAFKA_SASL_PASSWORD", c.KafkaSASLPasswordFile)
	v.secret(&c.HTTPToken, "HTTP_TOKEN", c.HTTPTokenFile)
	v.secret(&c.FieldsHashKey, "FIELDS_HASH_KEY", c.FieldsHashKeyFile)
	v.fields()
	v.httpAddr()
	if need&FullStory != 0 && c.FullStoryAPIKey.Reveal() == "" && c.FullStoryAPIKeyFile == "" {
		v.wrong("FULLSTORY_API_KEY", "missing: set it, or FULLSTORY_API_KEY_FILE, to an API key of your FullStory account")
	}
	if strings.ContainsFunc(c.FullStoryAPIKey.Reveal(), func(r rune) bool { return r < ' ' || r > '~' }) {
		v.wrong("FULLSTORY_API_KEY", "holds characters that no HTTP header takes; is it the key itself, on one line?")
	}
	v.baseURL()
	v.atLeast("FULLSTORY_REQUEST_TIMEOUT", c.FullStoryRequestTimeout, time.Millisecond)
	v.atLeast("FULLSTORY_RETRY_TIMEOUT", c.FullStoryRetryTimeout, 0)
	v.atLeast("FULLSTORY_JOB_TIMEOUT", c.FullStoryJobTimeout, 0)
	v.atLeast("KAFKA_RETRY_TIMEOUT", c.KafkaRetryTimeout, 0)
	v.atLeast("SHUTDOWN_TIMEOUT", c.ShutdownTimeout, 0)
	v.atLeast("COMMIT_INTERVAL", c.CommitInterval, 0)
	if c.CommitInterval > maxCommitInterval {
		v.wrong("COMMIT_INTERVAL", "%v is more than %v: open transactions hold back the readers of the topics", c.CommitInterval, maxCommitInterval)
	}
	if !(c.FullStoryRateLimit > 0) || c.FullStoryRateLimit > 1e6 {
		v.wrong("FULLSTORY_RATE_LIMIT", "%v requests a second: write a number above 0 and up to 1000000", c.FullStoryRateLimit)
	}
	v.between("FULLSTORY_RATE_BURST", c.FullStoryRateBurst, 1, 1_000_000)
	v.between("JOB_CONCURRENCY", c.JobConcurrency, 1, 1000)
	v.between("KAFKA_TOPIC_PARTITIONS", c.KafkaTopicPartitions, 1, 10_000)
	v.between("KAFKA_REPLICATION_FACTOR", c.KafkaReplicationFactor, 0, 100)
	if c.KafkaReplicationFactor == 0 {
		c.KafkaReplicationFactor = -1 // Kafka's word for the broker's default
	}

	v.brokers(need)
	v.topics()
	v.oneOf("KAFKA_DELIVERY", c.KafkaDelivery, ExactlyOnce, AtLeastOnce)
	v.oneOf("KAFKA_COMPRESSION", c.KafkaCompression, "none", "gzip", "snappy", "lz4", "zstd")
	v.oneOf("LOG_LEVEL", strings.ToLower(c.LogLevel), "debug", "info", "warn", "error")
	v.oneOf("LOG_FORMAT", c.LogFormat, "", "text", "json")
	v.sasl()
	if _, err := c.TLS(); err != nil {
		var problem tlsProblem
		errors.As(err, &problem)
		v.wrong(problem.variable, "%v", problem.err)
	}
}

// maxCommitInterval stays well below the time after which a broker aborts a
// transaction by itself.
const maxCommitInterval = 10 * time.Second

func (v *validation) secret(secret *Secret, variable, file string) {
	if file == "" {
		return
	}
	if secret.Reveal() != "" {
		v.wrong(variable, "set it or %s_FILE, not both", variable)
		return
	}
	content, err := os.ReadFile(file)
	switch {
	case err != nil:
		v.wrong(variable+"_FILE", "%v", err)
	case strings.TrimSpace(string(content)) == "":
		v.wrong(variable+"_FILE", "%s is empty", file)
	default:
		*secret = NewSecret(strings.TrimSpace(string(content)))
	}
}

func (v *validation) baseURL() {
	base := v.config.FullStoryBaseURL
	u, err := url.Parse(base)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		v.wrong("FULLSTORY_BASE_URL", "%q is no URL: write it like https://api.fullstory.com", base)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		v.wrong("FULLSTORY_BASE_URL", "write scheme and host only, like https://api.fullstory.com")
	case u.Scheme == "http" && !IsLoopback(u.Hostname()) && !v.config.FullStoryAllowHTTP:
		v.wrong("FULLSTORY_BASE_URL", "plain http would send the API key unprotected to %s: use https, or set FULLSTORY_ALLOW_HTTP=true", u.Host)
	}
}

func (v *validation) httpAddr() {
	if v.config.HTTPAddr == "" {
		return
	}
	_, port, err := net.SplitHostPort(v.config.HTTPAddr)
	if n, notNumber := strconv.Atoi(port); err != nil || notNumber != nil || n < 0 || n > 65535 {
		v.wrong("HTTP_ADDR", "%q is no address: write it like 127.0.0.1:8080, or :8080 for all interfaces", v.config.HTTPAddr)
	}
}

// HTTPIsLoopback tells whether HTTPAddr is reached from this machine only.
func (c *Config) HTTPIsLoopback() bool {
	host, _, err := net.SplitHostPort(c.HTTPAddr)
	return err == nil && IsLoopback(host)
}

// IsLoopback tells whether a host, a name or an address, is this machine.
func IsLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (v *validation) atLeast(variable string, d, least time.Duration) {
	if d < least {
		v.wrong(variable, "%v is less than %v", d, least)
	}
}

func (v *validation) between(variable string, n, least, most int) {
	if n < least || n > most {
		v.wrong(variable, "%d is not between %d and %d", n, least, most)
	}
}

func (v *validation) oneOf(variable, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		allowed = slices.DeleteFunc(allowed, func(s string) bool { return s == "" })
		v.wrong(variable, "%q is none of %s", value, strings.Join(allowed, ", "))
	}
}

func (v *validation) brokers(need Need) {
	if len(v.config.KafkaBrokers) == 0 && need&Kafka != 0 {
		v.wrong("KAFKA_BROKERS", "missing: write it like kafka-1:9092,kafka-2:9092")
	}
	for i, broker := range v.config.KafkaBrokers {
		broker = strings.TrimSpace(broker)
		v.config.KafkaBrokers[i] = broker
		host, port, err := net.SplitHostPort(broker)
		if err != nil || host == "" || port == "" {
			v.wrong("KAFKA_BROKERS", "%q is no broker: write it like kafka-1:9092,kafka-2:9092", broker)
		}
	}
}

// fields checks what is to be hidden. The key may be on its way in a file that
// could not be read, which was said then.
func (v *validation) fields() {
	c := v.config
	for variable, pointers := range map[string][]string{"FIELDS_DROP": c.FieldsDrop, "FIELDS_HASH": c.FieldsHash} {
		for i, pointer := range pointers {
			pointers[i] = strings.TrimSpace(pointer)
			if err := pipeline.CheckPointer(pointers[i]); err != nil {
				v.wrong(variable, "%v", err)
			}
		}
	}
	const least = 16
	switch key := c.FieldsHashKey.Reveal(); {
	case len(c.FieldsHash) > 0 && key == "" && c.FieldsHashKeyFile == "":
		v.wrong("FIELDS_HASH_KEY", "missing: FIELDS_HASH is set; make one with \"openssl rand -hex 32\"")
	case key != "" && len(key) < least:
		v.wrong("FIELDS_HASH_KEY", "%d bytes are too few, %d are needed: make one with \"openssl rand -hex 32\"", len(key), least)
	}
}

// topicName is what Kafka takes as a topic's name.
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

func (v *validation) topics() {
	type topic struct{ variable, name string }
	topics := []topic{
		{"KAFKA_TOPIC", v.config.KafkaTopic},
		{"KAFKA_DEAD_LETTER_TOPIC", v.config.KafkaDeadLetterTopic},
		{"KAFKA_PROGRESS_TOPIC", v.config.KafkaProgressTopic},
		{"KAFKA_JOBS_TOPIC", v.config.KafkaJobsTopic},
	}
	// A name that was derived, and is too long, must not keep those from working
	// who import no events.
	events := v.config.KafkaEventsTopic
	if derived := events == v.config.KafkaTopic+".events"; !derived || topicName.MatchString(events+".dead-letter") {
		for _, suffix := range []string{"", ".dead-letter", ".progress"} {
			topics = append(topics, topic{"KAFKA_EVENTS_TOPIC", events + suffix})
		}
	}
	seen := make(map[string]string)
	for _, topic := range topics {
		if !topicName.MatchString(topic.name) || topic.name == "." || topic.name == ".." {
			v.wrong(topic.variable, "%q is no topic name: up to 249 letters, digits, dots, dashes and underscores", topic.name)
		}
		if other, ok := seen[topic.name]; ok {
			v.wrong(topic.variable, "the same topic as %s: each needs its own", other)
		}
		seen[topic.name] = topic.variable
	}
}

func (v *validation) sasl() {
	c := v.config
	v.oneOf("KAFKA_SASL_MECHANISM", c.KafkaSASLMechanism, "", "plain", "scram-sha-256", "scram-sha-512", "aws-msk-iam")
	switch c.KafkaSASLMechanism {
	case "plain", "scram-sha-256", "scram-sha-512":
		if c.KafkaSASLUsername == "" {
			v.wrong("KAFKA_SASL_USERNAME", "missing: KAFKA_SASL_MECHANISM=%s needs it", c.KafkaSASLMechanism)
		}
		if c.KafkaSASLPassword.Reveal() == "" && c.KafkaSASLPasswordFile == "" {
			v.wrong("KAFKA_SASL_PASSWORD", "missing: set it or KAFKA_SASL_PASSWORD_FILE; KAFKA_SASL_MECHANISM=%s needs it", c.KafkaSASLMechanism)
		}
	case "":
		if c.KafkaSASLUsername != "" {
			v.wrong("KAFKA_SASL_MECHANISM", "missing: KAFKA_SASL_USERNAME is set; write plain, scram-sha-256 or scram-sha-512")
		}
	}
}

// Level returns the log level.
func (c *Config) Level() slog.Level {
	var level slog.Level
	// Validation has seen to it that the text is a level.
	_ = level.UnmarshalText([]byte(c.LogLevel))
	return level
}

type tlsProblem struct {
	variable string
	err      error
}

func (p tlsProblem) Error() string { return p.variable + ": " + p.err.Error() }

// TLS returns the TLS configuration for connections to the brokers; nil where
// they are not encrypted.
func (c *Config) TLS() (*tls.Config, error) {
	if !c.KafkaTLS {
		for variable, file := range map[string]string{
			"KAFKA_TLS_CA_FILE": c.KafkaTLSCAFile, "KAFKA_TLS_CERT_FILE": c.KafkaTLSCertFile, "KAFKA_TLS_KEY_FILE": c.KafkaTLSKeyFile,
		} {
			if file != "" {
				return nil, tlsProblem{"KAFKA_TLS", fmt.Errorf("%s is set: set KAFKA_TLS=true as well", variable)}
			}
		}
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.KafkaTLSCAFile != "" {
		pem, err := os.ReadFile(c.KafkaTLSCAFile)
		if err != nil {
			return nil, tlsProblem{"KAFKA_TLS_CA_FILE", err}
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, tlsProblem{"KAFKA_TLS_CA_FILE", fmt.Errorf("%s holds no PEM certificate", c.KafkaTLSCAFile)}
		}
	}
	switch {
	case c.KafkaTLSCertFile == "" && c.KafkaTLSKeyFile == "":
	case c.KafkaTLSCertFile == "":
		return nil, tlsProblem{"KAFKA_TLS_CERT_FILE", errors.New("missing: KAFKA_TLS_KEY_FILE is set")}
	case c.KafkaTLSKeyFile == "":
		return nil, tlsProblem{"KAFKA_TLS_KEY_FILE", errors.New("missing: KAFKA_TLS_CERT_FILE is set")}
	default:
		certificate, err := tls.LoadX509KeyPair(c.KafkaTLSCertFile, c.KafkaTLSKeyFile)
		if err != nil {
			return nil, tlsProblem{"KAFKA_TLS_CERT_FILE", err}
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return config, nil
}
