package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/twmb/franz-go/pkg/kgo"

	"rebound/config"
	"rebound/examples/reprocess/mend"
)

// How many users the demo's import has, and how many of them fail.
const (
	loopUsers    = 5000
	loopFailures = 1000
)

// closeLoop imports users of whom some fail, has them mended by rules and imported
// again, until nothing fails that a rule can mend, and counts who is in FullStory
// then.
func (p program) closeLoop(ctx context.Context, c *config.Config, page string) error {
	fmt.Fprintf(p.stdout, "\nClosing the loop: an import of %d users, of whom %d fail; examples/reprocess mends them by rules and\nimports them again, and rebound publishes what fails then.\n\n", loopUsers, loopFailures)
	id, err := importLoopUsers(ctx, c)
	if err != nil {
		return fmt.Errorf("import the demo's users: %w", err)
	}
	body, err := json.Marshal(map[string]any{"job_ids": []string{id}})
	if err != nil {
		return err
	}
	if err := submit(ctx, page, body); err != nil {
		return err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(c.KafkaBrokers...), kgo.ConsumerGroup("rebound-demo-reprocess"),
		kgo.ConsumeTopics(c.KafkaTopic, c.KafkaProgressTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.DisableAutoCommit())
	if err != nil {
		return err
	}
	defer client.Close()
	imported, err := jobImports(ctx, c, id)
	if err != nil {
		return err
	}
	var left []mend.Failure
	table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "JOB\tCODE\tFAILED\tMENDED\n")
	m := mend.Mender{
		Rules: mend.ExampleRules(), BaseURL: c.FullStoryBaseURL, APIKey: c.FullStoryAPIKey.Reveal(), Serve: page, Topic: c.KafkaTopic,
		Report: func(r mend.Report) {
			for _, code := range slices.Sorted(maps.Keys(r.Codes)) {
				fmt.Fprintf(table, "%s\t%s\t%d\t%d\n", r.JobID, code, r.Codes[code], r.Mended[code])
			}
			left = append(left, r.Left...)
			for _, id := range r.NewJobs {
				n, importErr := jobImports(ctx, c, id)
				imported += n
				err = cmp.Or(err, importErr)
			}
		},
	}
	if runErr := m.Run(ctx, client, id); runErr != nil || err != nil {
		return cmp.Or(runErr, err)
	}
	table.Flush()
	fmt.Fprintf(p.stdout, "\n%d of %d users are in FullStory now. No rule mends the other %d:\n", imported, loopUsers, len(left))
	reasons := make(map[string][]string)
	for _, f := range left {
		reason := f.Code + ": " + f.Message
		reasons[reason] = append(reasons[reason], fmt.Sprintf("%s/%d", f.JobID, f.Index))
	}
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		ids := reasons[reason]
		more := ""
		if len(ids) > 3 {
			ids, more = ids[:3], fmt.Sprintf(" and %d more", len(ids)-3)
		}
		fmt.Fprintf(p.stdout, "  %s (%s%s)\n", reason, strings.Join(ids, " "), more)
	}
	if imported+len(left) != loopUsers {
		return fmt.Errorf("%d users are imported and %d left, of %d", imported, len(left), loopUsers)
	}
	return nil
}

// importLoopUsers posts the import and returns its job.
func importLoopUsers(ctx context.Context, c *config.Config) (string, error) {
	users := make([]map[string]any, loopUsers)
	for i := range users {
		user := map[string]any{
			"uid": fmt.Sprintf("user-%d", i), "email": fmt.Sprintf("user%d@example.com", i), "display_name": "Ada Lovelace",
			"properties": map[string]any{"plan": "enterprise", "seats": i},
		}
		if i%(loopUsers/loopFailures) == 0 {
			spoil(user, i/(loopUsers/loopFailures))
		}
		users[i] = user
	}
	var answer struct {
		Job struct {
			ID string `json:"id"`
		} `json:"job"`
	}
	err := callDemo(ctx, c, http.MethodPost, "/v2/users/batch", map[string]any{"requests": users}, &answer)
	return answer.Job.ID, err
}

// spoil gives the nth failing user what FullStory does not take; some of it no
// rule can mend, and some users have two faults.
func spoil(user map[string]any, n int) {
	properties := user["properties"].(map[string]any)
	switch n % 10 {
	case 0, 1, 2:
		delete(user, "uid")
		if n%30 == 0 {
			delete(user, "email")
		}
	case 3, 4:
		user["email"] = "not an address"
	case 5:
		user["display_name"] = strings.Repeat("Ada ", 100)
	case 6, 7:
		properties["1st plan"] = "basic"
	case 8:
		properties["note"] = strings.Repeat("lorem ipsum ", 800)
		delete(user, "uid")
	default:
		user["email"] = "not an address"
		if n%50 == 49 {
			user["properties"] = "none"
			delete(user, "email")
		}
	}
}

// jobImports returns how many users a job has imported.
func jobImports(ctx context.Context, c *config.Config, id string) (int, error) {
	var answer struct {
		Imports int `json:"imports"`
	}
	err := callDemo(ctx, c, http.MethodGet, "/v2/users/batch/"+url.PathEscape(id), nil, &answer)
	return answer.Imports, err
}

// callDemo calls the simulated API.
func callDemo(ctx context.Context, c *config.Config, method, path string, body, answer any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, c.FullStoryBaseURL+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Basic "+c.FullStoryAPIKey.Reveal())
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", path, response.Status)
	}
	return json.NewDecoder(response.Body).Decode(answer)
}
