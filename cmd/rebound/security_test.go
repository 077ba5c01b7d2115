package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"rebound/internal/simulator"
)

// TestLockedDownKafka tries check, run and verify against Apache Kafka behind TLS,
// mutual TLS, SASL and ACLs. It starts a broker of its own, which takes what
// .ci/kafka takes, so it runs only where REBOUND_SECURITY is set: to a file that
// gets the results as a table, or to -.
func TestLockedDownKafka(t *testing.T) {
	report := os.Getenv("REBOUND_SECURITY")
	if report == "" {
		t.Skip("starts Apache Kafka: set REBOUND_SECURITY=-")
	}
	b := startLockedDown(t)
	var table strings.Builder
	table.WriteString("| configuration | `rebound check` | `rebound run` | `rebound verify` |\n| --- | --- | --- | --- |\n")
	for _, c := range b.cases() {
		t.Run(c.name, func(t *testing.T) {
			row := b.try(t, c)
			fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", c.name, row[0], row[1], row[2])
		})
	}
	if report != "-" {
		writeBetween(t, report, "<!-- tried -->\n", "<!-- end of tried -->", table.String())
	}
}

// lockedDown is a broker with a listener for each way to lock it.
type lockedDown struct {
	dir    string
	port   int
	admin  *kadm.Client
	client *kgo.Client
}

// Listeners, by their distance from the first port.
const (
	portAdmin = iota
	portTLS
	portMutual
	portSASL
	portExpired
	portOtherHost
	portPlainSASL
)

const password = "secret-canary"

func startLockedDown(t *testing.T) *lockedDown {
	t.Helper()
	b := &lockedDown{dir: t.TempDir(), port: 28092} // below those that the system gives to clients
	ca, foreign := newAuthority(t, "rebound test"), newAuthority(t, "somebody else")
	day := 24 * time.Hour
	write := func(name string, content ...[]byte) string {
		path := filepath.Join(b.dir, name)
		if err := os.WriteFile(path, slices.Concat(content...), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	store := func(name string, a *authority, host string, validFor time.Duration) string {
		certificate, key := a.issue(t, host, validFor)
		return write(name+".pem", key, certificate)
	}
	caFile := write("ca.pem", ca.pem)
	write("foreign.pem", foreign.pem)
	good, expired := store("server", ca, "127.0.0.1", day), store("expired", ca, "127.0.0.1", -time.Hour)
	otherHost := store("other", ca, "kafka.example.com", day)
	for name, a := range map[string]*authority{"rebound": ca, "stranger": foreign} {
		certificate, key := a.issue(t, name, day)
		write(name+".crt", certificate)
		write(name+".key", key)
	}
	certificate, key := ca.issue(t, "late", -time.Hour)
	write("late.crt", certificate)
	write("late.key", key)

	var properties strings.Builder
	listeners := []string{fmt.Sprintf("PLAINTEXT://127.0.0.1:%d", b.port)}
	protocols := "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT"
	for _, l := range []struct {
		name, protocol, keystore string
		port                     int
	}{
		{"TLS", "SSL", good, portTLS}, {"MUTUAL", "SSL", good, portMutual}, {"SASLTLS", "SASL_SSL", good, portSASL},
		{"EXPIRED", "SSL", expired, portExpired}, {"OTHERHOST", "SSL", otherHost, portOtherHost}, {"SASLONLY", "SASL_PLAINTEXT", "", portPlainSASL},
	} {
		listeners = append(listeners, fmt.Sprintf("%s://127.0.0.1:%d", l.name, b.port+l.port))
		protocols += "," + l.name + ":" + l.protocol
		prefix := "listener.name." + strings.ToLower(l.name) + "."
		if l.keystore != "" {
			fmt.Fprintf(&properties, "%sssl.keystore.type=PEM\n%sssl.keystore.location=%s\n%sssl.truststore.type=PEM\n%sssl.truststore.location=%s\n",
				prefix, prefix, l.keystore, prefix, prefix, caFile)
		}
		if strings.HasPrefix(l.protocol, "SASL") {
			fmt.Fprintf(&properties, "%[1]ssasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n"+
				"%[1]splain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_rebound=\"%[2]s\";\n"+
				"%[1]sscram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n"+
				"%[1]sscram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;\n", prefix, password)
		}
	}
	fmt.Fprintf(&properties, "listener.name.mutual.ssl.client.auth=required\n")
	fmt.Fprintf(&properties, "listeners=%s,CONTROLLER://127.0.0.1:%d\n", strings.Join(listeners, ","), b.port+101)
	fmt.Fprintf(&properties, "advertised.listeners=%s\nlistener.security.protocol.map=%s\n", strings.Join(listeners, ","), protocols)
	properties.WriteString("authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\nsuper.users=User:ANONYMOUS\n" +
		"allow.everyone.if.no.acl.found=false\n")
	extra := write("extra.properties", []byte(properties.String()))

	kafka := func(arguments ...string) *exec.Cmd {
		command := exec.Command("../../.ci/kafka", arguments...)
		command.Env = append(os.Environ(), "KAFKA_DATA="+filepath.Join(b.dir, "data"), "KAFKA_EXTRA="+extra)
		return command
	}
	t.Cleanup(func() { kafka("stop").Run() })
	if output, err := kafka("start", "1", fmt.Sprint(b.port)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(b.address(portAdmin)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	b.client, b.admin = client, kadm.NewClient(client)
	for _, mechanism := range []kadm.ScramMechanism{kadm.ScramSha256, kadm.ScramSha512} {
		user := kadm.UpsertSCRAM{User: "rebound", Mechanism: mechanism, Iterations: 4096, Password: password}
		altered, err := b.admin.AlterUserSCRAMs(t.Context(), nil, []kadm.UpsertSCRAM{user})
		if err != nil || altered.Error() != nil {
			t.Fatal(err, altered)
		}
	}
	return b
}

func (b *lockedDown) address(port int) string { return fmt.Sprintf("127.0.0.1:%d", b.port+port) }

// locked is a configuration that is tried.
type locked struct {
	name string
	port int
	env  string // settings, @ for the folder of the certificates
	// without leaves an ACL out, where there are any: all is what is documented
	// as needed.
	acls, without string
	create        bool // the topics are to be made by rebound
	quota         bool
	serve         bool // instead of run
	// What each command says; empty for success.
	check, run, verify string
}

const (
	scramLogin = "KAFKA_SASL_MECHANISM=scram-sha-512 KAFKA_SASL_USERNAME=rebound KAFKA_SASL_PASSWORD=" + password
	withTLS    = "KAFKA_TLS=true KAFKA_TLS_CA_FILE=@/ca.pem"
	mutual     = withTLS + " KAFKA_TLS_CERT_FILE=@/rebound.crt KAFKA_TLS_KEY_FILE=@/rebound.key"
)

func (b *lockedDown) cases() []locked {
	same := func(c locked, says string) locked {
		c.check, c.run, c.verify = says, says, says
		return c
	}
	return []locked{
		{name: "TLS, private CA", port: portTLS, env: withTLS},
		same(locked{name: "TLS, the CA is not trusted", port: portTLS, env: "KAFKA_TLS=true"}, "KAFKA_TLS_CA_FILE"),
		same(locked{name: "TLS, another CA is trusted", port: portTLS, env: "KAFKA_TLS=true KAFKA_TLS_CA_FILE=@/foreign.pem"}, "KAFKA_TLS_CA_FILE"),
		same(locked{name: "TLS, the broker's certificate has expired", port: portExpired, env: withTLS}, "has to be renewed"),
		same(locked{name: "TLS, the broker's certificate is for another host", port: portOtherHost, env: withTLS}, "KAFKA_BROKERS"),
		same(locked{name: "TLS port, KAFKA_TLS is off", port: portTLS}, "KAFKA_TLS"),
		same(locked{name: "plain port, KAFKA_TLS is on", port: portAdmin, env: withTLS}, "KAFKA_TLS"),
		{name: "mutual TLS", port: portMutual, env: mutual, acls: "User:CN=rebound"},
		same(locked{name: "mutual TLS, no client certificate", port: portMutual, env: withTLS}, "KAFKA_TLS_CERT_FILE"),
		same(locked{name: "mutual TLS, a client certificate of another CA", port: portMutual,
			env: withTLS + " KAFKA_TLS_CERT_FILE=@/stranger.crt KAFKA_TLS_KEY_FILE=@/stranger.key"}, "KAFKA_TLS_CERT_FILE"),
		same(locked{name: "mutual TLS, the client certificate has expired", port: portMutual,
			env: withTLS + " KAFKA_TLS_CERT_FILE=@/late.crt KAFKA_TLS_KEY_FILE=@/late.key"}, "KAFKA_TLS_CERT_FILE"),
		{name: "SASL PLAIN over TLS", port: portSASL, env: withTLS + " " + strings.Replace(scramLogin, "scram-sha-512", "plain", 1), acls: "User:rebound"},
		{name: "SASL SCRAM-SHA-256 over TLS", port: portSASL, env: withTLS + " " + strings.Replace(scramLogin, "512", "256", 1), acls: "User:rebound"},
		{name: "SASL SCRAM-SHA-512 over TLS", port: portSASL, env: withTLS + " " + scramLogin, acls: "User:rebound"},
		{name: "SASL SCRAM-SHA-512 without TLS", port: portPlainSASL, env: scramLogin, acls: "User:rebound"},
		same(locked{name: "SASL, a wrong password", port: portSASL, env: withTLS + " " + strings.Replace(scramLogin, password, "wrong-canary", 1)}, "KAFKA_SASL_PASSWORD"),
		same(locked{name: "SASL, an unknown user", port: portSASL, env: withTLS + " " + strings.Replace(scramLogin, "=rebound", "=nobody", 1)}, "KAFKA_SASL_USERNAME"),
		same(locked{name: "SASL port, KAFKA_SASL_MECHANISM is not set", port: portSASL, env: withTLS}, "KAFKA_SASL_MECHANISM"),
		same(locked{name: "no SASL on the port, KAFKA_SASL_MECHANISM is set", port: portTLS, env: withTLS + " " + scramLogin}, "KAFKA_SASL_MECHANISM"),
		{name: "ACLs: rebound makes its topics", port: portPlainSASL, env: scramLogin, acls: "User:rebound", create: true},
		{name: "ACLs: without Create on the topics", port: portPlainSASL, env: scramLogin, acls: "User:rebound", create: true, without: "create",
			check: "Create", run: "grant the ACL Create", verify: "no topic"},
		{name: "ACLs: none at all", port: portPlainSASL, env: scramLogin, acls: "User:somebody", check: "Describe", run: "Describe", verify: "Describe"},
		{name: "ACLs: without Write on the failures' topic", port: portPlainSASL, env: scramLogin, acls: "User:rebound", without: "write failures",
			check: "Write", run: "Write", verify: "never published"},
		{name: "ACLs: without Write on the dead letters' topic", port: portPlainSASL, env: scramLogin, acls: "User:rebound", without: "write dead letters",
			check: "Write", run: "Write", verify: "never published"},
		{name: "ACLs: without Write on the progress topic", port: portPlainSASL, env: scramLogin, acls: "User:rebound", without: "write progress",
			check: "Write", run: "Write", verify: "never published"},
		{name: "ACLs: without Read on the progress topic", port: portPlainSASL, env: scramLogin, acls: "User:rebound", without: "read progress",
			check: "Read", run: "Read", verify: "Read"},
		{name: "ACLs: without Read on the failures' topic", port: portPlainSASL, env: scramLogin, acls: "User:rebound", without: "read failures",
			check: "ok: would need the ACL Read", verify: "ACL Read"},
		{name: "ACLs: without DescribeConfigs", port: portPlainSASL, env: scramLogin, acls: "User:rebound", without: "configs",
			check: "ok: ", run: "ok: DescribeConfigs", verify: "ok: DescribeConfigs"},
		{name: "ACLs: without Write on the transactional ids", port: portPlainSASL, env: scramLogin, acls: "User:rebound", without: "transactions",
			check: "transactional ids", run: "transactional ids", verify: "never published"},
		{name: "the same with KAFKA_DELIVERY=at-least-once", port: portPlainSASL, env: scramLogin + " KAFKA_DELIVERY=at-least-once", acls: "User:rebound", without: "transactions"},
		{name: "ACLs: serve", port: portPlainSASL, env: scramLogin, acls: "User:rebound", serve: true},
		{name: "ACLs: serve without Read on the jobs topic", port: portPlainSASL, env: scramLogin, acls: "User:rebound", serve: true, without: "read jobs",
			check: "grant rebound's user the ACL Read on topic", run: "ok: ACL Read on topic", verify: "never published"},
		{name: "ACLs: serve without Read on the consumer group", port: portPlainSASL, env: scramLogin, acls: "User:rebound", serve: true, without: "group",
			check: "Read on the consumer group", run: "Read on the consumer group", verify: "never published"},
		{name: "a quota of 10 kB a second", port: portPlainSASL, env: scramLogin, acls: "User:rebound", quota: true},
	}
}

// try runs the commands in topics of their own and returns what they said, in
// short.
func (b *lockedDown) try(t *testing.T, c locked) (row [3]string) {
	garbage := 0.01
	if c.quota {
		garbage = 0 // a user of 4 MB would take minutes
	}
	w := &world{t: t, api: simulator.New(simulator.Options{Faults: simulator.Faults{simulator.Garbage: garbage}})}
	url := serveHandler(t, w.api)
	topic := fmt.Sprintf("locked-%d", worlds.Add(1))
	w.conjure("job=", 2000, 100)
	w.env = map[string]string{
		asRebound: "1", "FULLSTORY_API_KEY": "key", "FULLSTORY_BASE_URL": url, "FULLSTORY_RATE_LIMIT": "1000", "LOG_LEVEL": "warn",
		"KAFKA_BROKERS": b.address(c.port), "KAFKA_TOPIC": topic, "KAFKA_CREATE_TOPICS": fmt.Sprint(c.create), "KAFKA_RETRY_TIMEOUT": "3s",
	}
	for _, setting := range strings.Fields(strings.ReplaceAll(c.env, "@", b.dir)) {
		name, value, _ := strings.Cut(setting, "=")
		w.env[name] = value
	}
	if !c.create {
		compact := "compact"
		_, err := b.admin.CreateTopics(t.Context(), 6, 1, nil, topic, topic+".dead-letter", topic+".jobs")
		_, err2 := b.admin.CreateTopics(t.Context(), 6, 1, map[string]*string{"cleanup.policy": &compact}, topic+".progress")
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
	}
	if c.acls != "" {
		b.grant(t, c, topic)
	}
	if c.quota {
		user := "rebound"
		entity := []kadm.ClientQuotaEntityComponent{{Type: "user", Name: &user}}
		set := func(remove bool) {
			alter := []kadm.AlterClientQuotaEntry{{Entity: entity, Ops: []kadm.AlterClientQuotaOp{{Key: "producer_byte_rate", Value: 10_000, Remove: remove}}}}
			if _, err := b.admin.AlterClientQuotas(t.Context(), alter); err != nil {
				t.Fatal(err)
			}
		}
		set(false)
		defer set(true)
	}
	check, run := []string{"check"}, []string{"run", "job="}
	if c.serve {
		w.env["KAFKA_GROUP_ID"], w.env["HTTP_ADDR"] = topic, "127.0.0.1:0"
		check, run = []string{"check", "--serve"}, []string{"serve"}
	}
	for i, step := range []struct {
		arguments []string
		says      string
	}{{check, c.check}, {run, c.run}, {[]string{"verify", "job="}, c.verify}} {
		var r result
		if c.serve && i == 1 {
			r = b.serve(w, c)
		} else {
			began := time.Now()
			r = w.run(step.arguments)
			if took := time.Since(began); c.quota && i == 1 && took < 2*time.Second {
				t.Errorf("it took %v: the quota has throttled nothing", took)
			}
		}
		said := r.stdout + r.stderr
		says, fine := strings.CutPrefix(step.says, "ok: ")
		if fine = fine || step.says == ""; fine != (r.status == 0) || !strings.Contains(said, says) {
			t.Errorf("rebound %s: status %d, and it does not say %q, but\n%s", step.arguments[0], r.status, step.says, said)
		}
		if strings.Contains(said, "canary") {
			t.Errorf("rebound %s shows the password:\n%s", step.arguments[0], said)
		}
		row[i] = strings.ReplaceAll(inShort(r, says), topic, "TOPIC")
	}
	for i := 2; i > 0; i-- {
		if row[i] == row[0] {
			row[i] = "the same"
		}
	}
	return row
}

// serve runs an instance until a job is done or it says what is wrong.
func (b *lockedDown) serve(w *world, c locked) result {
	w.t.Helper()
	i := w.startServe("LOG_LEVEL=info")
	says := strings.TrimPrefix(c.run, "ok: ")
	if says == "" {
		await(w.t, 30*time.Second, "the instance ready\n"+i.log.String(), func() bool {
			status, _, _ := i.call("GET", "/readyz", "")
			return status == 200
		})
		i.submit(false, "job=")
		says = "the job is done"
	}
	var r result
	await(w.t, 30*time.Second, says, func() bool {
		select {
		case err := <-i.ended:
			i.ended <- err
			r.status = i.command.ProcessState.ExitCode()
			return true
		case <-time.After(50 * time.Millisecond):
			return strings.Contains(i.log.String(), says)
		}
	})
	i.kill()
	r.stderr = i.log.String()
	return r
}

// inShort is what a cell of the table says.
func inShort(r result, says string) string {
	cell := "works"
	if r.status != 0 {
		cell = fmt.Sprintf("status %d", r.status)
	}
	if says == "" {
		return cell
	}
	for _, line := range strings.Split(r.stdout+r.stderr, "\n") {
		at := strings.Index(line, says)
		if at < 0 {
			continue
		}
		begin := strings.LastIndexAny(line[:at], ":;\"") + 1
		end := at + strings.IndexAny(line[at:]+";", ";\"[")
		return cell + ": " + strings.ReplaceAll(strings.Trim(line[begin:end], ": "), "|", "/")
	}
	return cell
}

// grant gives a user the documented ACLs but for the one that is left out.
func (b *lockedDown) grant(t *testing.T, c locked, topic string) {
	t.Helper()
	type grant struct {
		name       string
		resource   kmsg.ACLResourceType
		on         string
		pattern    kmsg.ACLResourcePatternType
		operations kadm.ACLOperation
	}
	const literal, prefixed = kmsg.ACLResourcePatternTypeLiteral, kmsg.ACLResourcePatternTypePrefixed
	const topics, ids = kmsg.ACLResourceTypeTopic, kmsg.ACLResourceTypeTransactionalId
	progress, dead, jobs := topic+".progress", topic+".dead-letter", topic+".jobs"
	for _, g := range []grant{
		{"write failures", topics, topic, literal, kadm.OpWrite},
		{"write dead letters", topics, dead, literal, kadm.OpWrite},
		{"write progress", topics, progress, literal, kadm.OpWrite},
		{"read progress", topics, progress, literal, kadm.OpRead},
		{"read failures", topics, topic, literal, kadm.OpRead},
		{"read failures", topics, dead, literal, kadm.OpRead},
		{"write jobs", topics, jobs, literal, kadm.OpWrite},
		{"read jobs", topics, jobs, literal, kadm.OpRead},
		{"group", kmsg.ACLResourceTypeGroup, topic, literal, kadm.OpRead},
		{"describe", topics, topic, prefixed, kadm.OpDescribe},
		{"configs", topics, topic, prefixed, kadm.OpDescribeConfigs},
		{"create", topics, topic, prefixed, kadm.OpCreate},
		{"transactions", ids, progress + "/", prefixed, kadm.OpWrite},
	} {
		if onlyServe := g.on == jobs || g.resource == kmsg.ACLResourceTypeGroup; onlyServe && !c.serve {
			continue
		}
		if g.name == c.without || g.name == "create" && !c.create {
			continue
		}
		request := kmsg.NewPtrCreateACLsRequest()
		acl := kmsg.NewCreateACLsRequestCreation()
		acl.ResourceType, acl.ResourceName, acl.ResourcePatternType = g.resource, g.on, g.pattern
		acl.Principal, acl.Host, acl.Operation, acl.PermissionType = c.acls, "*", g.operations, kmsg.ACLPermissionTypeAllow
		request.Creations = append(request.Creations, acl)
		response, err := request.RequestWith(t.Context(), b.client)
		if err != nil || response.Results[0].ErrorCode != 0 {
			t.Fatalf("%v %+v", err, response)
		}
	}
}

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour),
		NotAfter: time.Now().Add(48 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue returns a certificate and its key for a host or a client; less than no
// time makes one that has expired.
func (a *authority) issue(t *testing.T, name string, validFor time.Duration) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(validFor), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &private.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}

// writeBetween puts text between two lines of a file.
func writeBetween(t *testing.T, file, begin, end, text string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := bytes.Cut(content, []byte(begin))
	_, tail, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		t.Fatalf("%s has no %q", file, begin)
	}
	if err := os.WriteFile(file, slices.Concat(head, []byte(begin), []byte(text), []byte(end), tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
