package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/gladsheim/gladsheim/api/client"
)

// followPause is the least time from one try to open a stream to the next.
const followPause = time.Second

// follow takes each message of a stream. With on, it goes on over the end of the
// agent, once it was there: it waits for the next one and opens the stream again,
// after resumed has said on stderr where that goes on.
func follow[M any](ctx context.Context, a *app, on bool, open func(...grpc.CallOption) (grpc.ServerStreamingClient[M], error),
	take func(*M) error, resumed func() string) error {
	var wait []grpc.CallOption // none at first: an agent that is not there is told at once
	for {
		tried := time.Now()
		stream, err := open(wait...)
		if err == nil {
			if wait != nil {
				a.here(resumed())
			}
			err = receive(stream.Recv, take)
		} else if wait == nil {
			return err
		}
		if !on || ctx.Err() != nil || !client.Gone(err) {
			return err
		}
		a.away()
		wait = []grpc.CallOption{grpc.WaitForReady(true)}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(tried.Add(followPause))):
		}
	}
}

// away says that the agent has gone, for the first stream that notices.
func (a *app) away() {
	a.absence.Lock()
	defer a.absence.Unlock()
	if a.waiting++; a.waiting == 1 {
		fmt.Fprintf(a.err, "gladsheim: the agent at %s has gone; waiting for the next one (ctrl-c ends this)\n", plain(a.client.Address()))
	}
}

// here says that there is an agent again, when the last stream is resumed.
func (a *app) here(text string) {
	a.absence.Lock()
	defer a.absence.Unlock()
	if a.waiting--; a.waiting == 0 {
		fmt.Fprintf(a.err, "gladsheim: there is an agent again; %s\n", text)
	}
}
