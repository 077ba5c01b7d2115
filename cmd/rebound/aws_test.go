package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go/sasl"

	"rebound/config"
)

// There is no MSK here to log in to. What is sent is looked at instead: its
// signature is worked out once more, from AWS's description, without their SDK.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
func TestIAMIsSignedAsAWSWantsIt(t *testing.T) {
	const secret, host = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "b-1.example.kafka.eu-west-1.amazonaws.com"
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	t.Setenv("AWS_SESSION_TOKEN", "token/+=")
	t.Setenv("AWS_REGION", "eu-west-1")
	m, err := mechanism(t.Context(), &config.Config{KafkaSASLMechanism: "aws-msk-iam"})
	if err != nil {
		t.Fatal(err)
	}
	if m.Name() != "AWS_MSK_IAM" {
		t.Errorf("the mechanism is %s", m.Name())
	}
	_, sent, err := m.Start(sasl.WithMetadata(t.Context(), &sasl.Metadata{Host: host, Port: 9098}))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(sent), secret) {
		t.Error("the secret key is sent")
	}
	var login map[string]string
	if err := json.Unmarshal(sent, &login); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"version": "2020_10_22", "host": host, "action": "kafka-cluster:Connect", "x-amz-algorithm": "AWS4-HMAC-SHA256",
		"x-amz-security-token": "token/+=", "x-amz-signedheaders": "host",
	} {
		if login[name] != want {
			t.Errorf("%s is %q, want %q", name, login[name], want)
		}
	}
	date := login["x-amz-date"]
	scope := date[:8] + "/eu-west-1/kafka-cluster/aws4_request"
	if login["x-amz-credential"] != "AKIDEXAMPLE/"+scope {
		t.Errorf("x-amz-credential is %q", login["x-amz-credential"])
	}
	query := url.Values{"Action": {"kafka-cluster:Connect"}, "X-Amz-Algorithm": {"AWS4-HMAC-SHA256"}, "X-Amz-Credential": {login["x-amz-credential"]},
		"X-Amz-Date": {date}, "X-Amz-Expires": {login["x-amz-expires"]}, "X-Amz-Security-Token": {"token/+="}, "X-Amz-SignedHeaders": {"host"}}
	hash := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:])
	}
	sign := func(key []byte, text string) []byte {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
	canonical := "GET\n/\n" + strings.ReplaceAll(query.Encode(), "+", "%20") + "\nhost:" + host + "\n\nhost\n" + hash("")
	key := []byte("AWS4" + secret)
	for _, part := range strings.Split(scope, "/") {
		key = sign(key, part)
	}
	if want := hex.EncodeToString(sign(key, "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+hash(canonical))); login["x-amz-signature"] != want {
		t.Errorf("the signature is %s, want %s", login["x-amz-signature"], want)
	}
}

func TestIAMNeedsARegion(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	if _, err := mechanism(t.Context(), &config.Config{KafkaSASLMechanism: "aws-msk-iam"}); err == nil || !strings.Contains(err.Error(), "AWS_REGION") {
		t.Errorf("the error is %v", err)
	}
}
