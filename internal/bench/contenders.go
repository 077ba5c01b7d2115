package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// contend is one of the programs that rebound is held against.
func contend(name string, jobIDs []string) error {
	ctx := context.Background()
	if name == bareFetch {
		var jobs errgroup.Group
		for _, id := range jobIDs {
			jobs.Go(func() error { return fetchAll(id) })
		}
		return jobs.Wait()
	}
	program, ok := map[string]func(context.Context, string) error{obvious: obviousProgram, good: goodProgram}[name]
	if !ok {
		return fmt.Errorf("there is no contender %q", name)
	}
	if err := makeTopic(ctx); err != nil {
		return err
	}
	var jobs errgroup.Group
	for _, id := range jobIDs {
		jobs.Go(func() error { return program(ctx, id) })
	}
	return jobs.Wait()
}

// get returns the page that token asks for, in buf's memory where it fits.
func get(jobID, token string, buf *bytes.Buffer) error {
	u := os.Getenv("BENCH_API") + "/v2/users/batch/" + url.QueryEscape(jobID) + "/errors"
	if token != "" {
		u += "?page_token=" + url.QueryEscape(token)
	}
	request, err := http.NewRequest(http.MethodGet, u, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Basic key")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	buf.Reset()
	_, err = io.Copy(buf, response.Body)
	return err
}

// fetchAll fetches the pages and looks for nothing in them but the next token.
func fetchAll(jobID string) error {
	var buf bytes.Buffer
	for token := ""; ; {
		if err := get(jobID, token, &buf); err != nil {
			return err
		}
		_, rest, found := bytes.Cut(buf.Bytes()[max(0, buf.Len()-200):], []byte(`"next_page_token":"`))
		next, _, _ := bytes.Cut(rest, []byte(`"`))
		if !found || len(next) == 0 {
			return nil
		}
		token = string(next)
	}
}

// page is how most programs would take a page apart.
type page struct {
	Results []struct {
		Code    string          `json:"code"`
		Message string          `json:"message"`
		User    json.RawMessage `json:"user"`
	} `json:"results"`
	NextPageToken string `json:"next_page_token"`
}

// value is what they would publish.
type value struct {
	JobID   string          `json:"job_id"`
	Index   int             `json:"index"`
	Code    string          `json:"code"`
	Message string          `json:"message"`
	User    json.RawMessage `json:"user"`
}

func messageOf(jobID string, p *page, i, index int) (key, body []byte, err error) {
	r := &p.Results[i]
	var user struct {
		UID string `json:"uid"`
	}
	if err := json.Unmarshal(r.User, &user); err != nil {
		return nil, nil, err
	}
	body, err = json.Marshal(value{jobID, index, r.Code, r.Message, r.User})
	return []byte(user.UID), body, err
}

// obviousProgram fetches a page, decodes it, writes it, and fetches the next.
func obviousProgram(ctx context.Context, jobID string) error {
	writer := &kafka.Writer{
		Addr:         kafka.TCP(brokers()...),
		Topic:        os.Getenv("BENCH_TOPIC"),
		Balancer:     &kafka.Murmur2Balancer{},
		RequiredAcks: kafka.RequireAll,
		Compression:  kafka.Lz4,
		BatchTimeout: 1e7, // 10 ms: with the default, 1 s, each page would take that long
		BatchSize:    1000,
	}
	var buf bytes.Buffer
	index := 0
	for token := ""; ; {
		if err := get(jobID, token, &buf); err != nil {
			return err
		}
		var p page
		if err := json.Unmarshal(buf.Bytes(), &p); err != nil {
			return err
		}
		messages := make([]kafka.Message, len(p.Results))
		for i := range p.Results {
			key, body, err := messageOf(jobID, &p, i, index)
			if err != nil {
				return err
			}
			messages[i] = kafka.Message{Key: key, Value: body, Headers: []kafka.Header{
				{Key: "job", Value: []byte(jobID)}, {Key: "code", Value: []byte(p.Results[i].Code)}}}
			index++
		}
		if err := writer.WriteMessages(ctx, messages...); err != nil {
			return err
		}
		if token = p.NextPageToken; token == "" {
			return writer.Close()
		}
	}
}

// goodProgram fetches, decodes and produces at the same time, with franz-go.
func goodProgram(ctx context.Context, jobID string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers()...), kgo.DefaultProduceTopic(os.Getenv("BENCH_TOPIC")),
		kgo.ProducerBatchCompression(kgo.Lz4Compression()))
	if err != nil {
		return err
	}
	defer client.Close()
	pages := make(chan *page, 2)
	failed := make(chan error, 1)
	go func() {
		defer close(pages)
		bodies := make(chan []byte, 2)
		go func() {
			defer close(bodies)
			for token := ""; ; {
				var buf bytes.Buffer
				if err := get(jobID, token, &buf); err != nil {
					failed <- err
					return
				}
				bodies <- buf.Bytes()
				_, rest, _ := bytes.Cut(buf.Bytes()[max(0, buf.Len()-200):], []byte(`"next_page_token":"`))
				next, _, _ := bytes.Cut(rest, []byte(`"`))
				if token = string(next); token == "" {
					return
				}
			}
		}()
		for body := range bodies {
			p := new(page)
			if err := json.Unmarshal(body, p); err != nil {
				failed <- err
				return
			}
			pages <- p
		}
	}()
	index := 0
	for p := range pages {
		for i := range p.Results {
			key, body, err := messageOf(jobID, p, i, index)
			if err != nil {
				return err
			}
			client.Produce(ctx, &kgo.Record{Key: key, Value: body, Headers: []kgo.RecordHeader{
				{Key: "job", Value: []byte(jobID)}, {Key: "code", Value: []byte(p.Results[i].Code)}}},
				func(_ *kgo.Record, err error) {
					if err != nil {
						select {
						case failed <- err:
						default:
						}
					}
				})
			index++
		}
	}
	if err := client.Flush(ctx); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func brokers() []string { return strings.Split(os.Getenv("BENCH_BROKERS"), ",") }

func makeTopic(ctx context.Context) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers()...))
	if err != nil {
		return err
	}
	defer client.Close()
	partitions, err := strconv.Atoi(os.Getenv("BENCH_PARTITIONS"))
	if err != nil {
		return err
	}
	_, err = kadm.NewClient(client).CreateTopic(ctx, int32(partitions), -1, nil, os.Getenv("BENCH_TOPIC"))
	return err
}
