package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/logfile"
)

// Exits are the latest n ends of a service, latest first; n < 1 means all kept.
func (a *Agent) Exits(name service.Name, n int) ([]service.ExitRecord, error) {
	if _, err := a.Status(name); err != nil {
		return nil, err
	}
	a.mu.Lock()
	exits := a.exits[name]
	a.mu.Unlock()
	out := a.withLines(name, exits)
	slices.Reverse(out)
	if n > 0 && n < len(out) {
		out = out[:n]
	}
	return out, nil
}

// LogFile is where the output of a service goes that is not in the journal.
func (a *Agent) LogFile(name service.Name) (*logfile.File, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, err := a.find("read the log of", name)
	if err != nil {
		return nil, err
	}
	if d.spec.Log == service.LogNull {
		return nil, &service.Error{Op: "read the log of", Service: name, Kind: service.Conflict, Err: errors.New(`its definition says "log": "null"`)}
	}
	return a.cfg.Logs.File(a.logPath(name)), nil
}

// Watch gives every notice after the one of the returned sequence; see
// skirnir.Registry.Watch.
func (a *Agent) Watch(ctx context.Context) (after uint64, notices <-chan service.Notice, err error) {
	after, notices = a.registry.Watch(ctx)
	return after, notices, nil
}

// catchUp tells what an agent that died did not come to tell, or told of what it then
// did not do: whoever goes on where that one ended hears how it is. What lives or
// waits for its next attempt tells of itself.
func (a *Agent) catchUp() {
	told := map[service.Name]service.State{}
	for _, n := range a.registry.Kept(0) {
		if n.Service.IsZero() { // of the host
			continue
		}
		if told[n.Service] = n.State; n.Kind == service.NoticeUnregistered {
			delete(told, n.Service)
		}
	}
	for name, state := range told {
		s, known := a.registry.Get(name)
		switch {
		case !known:
			a.registry.Add(service.Status{Name: name})
			a.registry.Remove(name, skirnir.News{Kind: service.NoticeUnregistered, Reason: "restored"})
		case s.Machine.State != state && (s.Machine.State == service.Stopped || s.Machine.State == service.Crashed):
			a.registry.Update(name, skirnir.News{Kind: service.NoticeState, Reason: "restored"}, func(*service.Status) {})
		}
	}
}

// Kept gives the notices that are kept of those after the one of a sequence, oldest
// first.
func (a *Agent) Kept(after uint64) []service.Notice { return a.registry.Kept(after) }

// Sequence is the number of the latest notice.
func (a *Agent) Sequence() uint64 { return a.registry.Sequence() }

// KeptSince is from when on Kept misses no notice.
func (a *Agent) KeptSince() time.Time { return a.registry.KeptSince() }
