// Package kafkaproxy passes Kafka connections on, sees every request and answer
// on the way, and can lose either, cut the connection, or have something happen
// at that very moment. Tests put it between rebound and the brokers.
package kafkaproxy

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
)

// Moment is when something can happen to a request.
type Moment int

const (
	// Arrived: the request has left the client, the broker has not got it.
	Arrived Moment = iota
	// Handled: the broker has answered, the client has not got the answer.
	Handled
	// Answered: the client has the answer.
	Answered
)

func (m Moment) String() string {
	return [...]string{"before the broker gets it", "before the answer is read", "after the answer"}[m]
}

// Event is a moment of a request.
type Event struct {
	// API is the request's api key: https://kafka.apache.org/protocol#protocol_api_keys
	API    int16
	Moment Moment
}

// ErrCut, returned by a hook, loses what was to be passed on and cuts the
// connection.
var ErrCut = errors.New("the connection is cut")

// Hook is called at each moment of each request, by several goroutines. Any
// error cuts the connection.
type Hook func(Event) error

// Proxy passes the connections of one listener on.
type Proxy struct {
	listener net.Listener
	dial     func() (net.Conn, error)
	hook     Hook

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	wait  sync.WaitGroup
}

// Start accepts connections from listener and passes them on to where dial
// leads. A nil hook lets everything pass. Close it after use.
func Start(listener net.Listener, dial func() (net.Conn, error), hook Hook) *Proxy {
	if hook == nil {
		hook = func(Event) error { return nil }
	}
	p := &Proxy{listener: listener, dial: dial, hook: hook, conns: make(map[net.Conn]struct{})}
	p.wait.Go(p.accept)
	return p
}

// Close cuts all connections and takes no more.
func (p *Proxy) Close() {
	p.listener.Close()
	p.Cut()
	p.wait.Wait()
}

// Cut cuts all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wait.Go(func() {
			defer client.Close()
			broker, err := p.dial()
			if err != nil {
				return
			}
			defer broker.Close()
			p.remember(client, broker)
			defer p.forget(client, broker)
			p.pass(client, broker)
		})
	}
}

func (p *Proxy) remember(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
}

func (p *Proxy) forget(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}

// pass passes frames both ways until either side ends. Brokers answer the
// requests of a connection in their order.
func (p *Proxy) pass(client, broker net.Conn) {
	apis := make(chan int16, 100)
	var both sync.WaitGroup
	both.Go(func() {
		defer close(apis)
		defer broker.Close()
		for {
			frame, err := readFrame(client)
			if err != nil || len(frame) < 8 {
				return
			}
			api := int16(binary.BigEndian.Uint16(frame[4:]))
			if p.hook(Event{api, Arrived}) != nil {
				return
			}
			if _, err := broker.Write(frame); err != nil {
				return
			}
			apis <- api
		}
	})
	both.Go(func() {
		defer client.Close()
		for {
			frame, err := readFrame(broker)
			if err != nil {
				return
			}
			api, ok := <-apis
			if !ok || p.hook(Event{api, Handled}) != nil {
				return
			}
			if _, err := client.Write(frame); err != nil {
				return
			}
			if p.hook(Event{api, Answered}) != nil {
				return
			}
		}
	})
	both.Wait()
}

// readFrame reads a request or an answer: its size, then as many bytes.
func readFrame(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, 4+binary.BigEndian.Uint32(size[:]))
	copy(frame, size[:])
	_, err := io.ReadFull(r, frame[4:])
	return frame, err
}

// Pipe is a listener without a network, for a broker inside the process: its
// clients come by Dial. It bears the address of the proxy before it.
type Pipe struct {
	address net.Addr
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

// NewPipe returns a listener that claims to be at address.
func NewPipe(address net.Addr) *Pipe {
	return &Pipe{address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Dial connects to the listener.
func (p *Pipe) Dial() (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- addressed{server, p.address}:
		return client, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Accept is part of [net.Listener].
func (p *Pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close is part of [net.Listener].
func (p *Pipe) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Addr is part of [net.Listener].
func (p *Pipe) Addr() net.Addr { return p.address }

// addressed is a connection of a pipe with the address of a network's.
type addressed struct {
	net.Conn
	address net.Addr
}

func (a addressed) LocalAddr() net.Addr  { return a.address }
func (a addressed) RemoteAddr() net.Addr { return a.address }
