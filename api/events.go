package api

import (
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// maxWatched is how many services one watch may name.
const maxWatched = 1024

// events serves what happens.
type events struct {
	gladsheimv1.UnsafeEventServiceServer
	*Server
}

// Watch tells the past from what is kept and takes up from there, so that
// between the past and the present nothing is lost.
func (e *events) Watch(req *gladsheimv1.WatchRequest, ss grpc.ServerStreamingServer[gladsheimv1.WatchEvent]) error {
	w, err := e.newWatcher(req, ss)
	if err != nil {
		return err
	}
	after, notices, err := e.agent.Watch(ss.Context())
	if err != nil {
		return err
	}
	w.last = after
	if err := w.past(); err != nil {
		return err
	}
	if err := w.sync(); err != nil || req.GetBacklogOnly() {
		return err
	}
	for n := range notices {
		if err := w.present(n); err != nil {
			return err
		}
		if err := w.hole(lastLost(e.agent, notices, w.last)); err != nil {
			return err
		}
	}
	return ss.Context().Err()
}

// watcher is one watch.
type watcher struct {
	agent Agent
	req   *gladsheimv1.WatchRequest
	only  map[service.Name]bool // empty for all
	send  func(*gladsheimv1.WatchEvent) error
	last  uint64 // sequence of the last notice seen
}

func (e *events) newWatcher(req *gladsheimv1.WatchRequest, ss grpc.ServerStreamingServer[gladsheimv1.WatchEvent]) (*watcher, error) {
	invalid := func(text string) error {
		return &service.Error{Op: "watch", Kind: service.Invalid, Err: errors.New(text)}
	}
	pasts := 0
	for _, set := range []bool{req.AfterSequence != nil, req.BacklogCount != nil, req.BacklogSinceUnixMs != nil} {
		if set {
			pasts++
		}
	}
	switch {
	case pasts > 1:
		return nil, invalid("after_sequence, backlog_count and backlog_since_unix_ms exclude each other")
	case len(req.GetServiceNames()) > maxWatched:
		return nil, invalid("too many services are named; name none to watch all")
	}
	w := &watcher{agent: e.agent, req: req, only: map[service.Name]bool{}, send: ss.Send}
	for _, text := range req.GetServiceNames() {
		st, err := e.find("watch", text)
		if err != nil {
			return nil, err
		}
		w.only[st.Name] = true
	}
	return w, nil
}

// wants tells whether a notice concerns the watch.
func (w *watcher) wants(name service.Name) bool { return len(w.only) == 0 || w.only[name] }

// past tells what was asked for of the notices that are kept.
func (w *watcher) past() error {
	switch {
	case w.req.AfterSequence != nil:
		_, err := w.resume(w.req.GetAfterSequence())
		return err
	case w.req.BacklogCount != nil:
		return w.latest(uint64(w.req.GetBacklogCount()))
	case w.req.BacklogSinceUnixMs != nil:
		return w.since(time.UnixMilli(w.req.GetBacklogSinceUnixMs()))
	}
	return nil
}

// kept are the notices after a sequence that are kept; later ones come as they
// happen.
func (w *watcher) kept(after uint64) []service.Notice {
	return slices.DeleteFunc(w.agent.Kept(after), func(n service.Notice) bool { return n.Sequence > w.last })
}

// latest tells the last few. They are without holes, so that of those of all
// services it is known where they begin.
func (w *watcher) latest(count uint64) error {
	count, after := min(count, w.last), uint64(0)
	if len(w.only) == 0 {
		after = w.last - count
	}
	wanted := slices.DeleteFunc(w.kept(after), func(n service.Notice) bool { return !w.wants(n.Service) })
	return w.tell(wanted[len(wanted)-min(len(wanted), int(count)):])
}

// since tells what is kept from a time on. Before what is kept there may have
// been more, nobody knows from which on.
func (w *watcher) since(since time.Time) error {
	kept := w.kept(0)
	if since.Before(w.agent.KeptSince()) {
		before := w.last
		if len(kept) > 0 {
			before = kept[0].Sequence - 1
		}
		if err := w.gap(0, before); err != nil {
			return err
		}
	}
	for i, n := range kept {
		if !n.Time.Before(since) {
			return w.tell(kept[i:])
		}
	}
	return nil
}

// resume tells what came after a sequence, and whether some of it is missing. One
// that was not reached yet is that of another registry: what is missing since then
// began nobody knows where.
func (w *watcher) resume(after uint64) (gap bool, err error) {
	if after > w.last {
		return true, w.gap(0, w.last)
	}
	kept := w.kept(after)
	missing := w.last
	if len(kept) > 0 {
		missing = kept[0].Sequence - 1
	}
	if after < missing {
		gap, err = true, w.gap(after+1, missing)
	}
	if err == nil {
		err = w.tell(kept)
	}
	return gap, err
}

func (w *watcher) tell(notices []service.Notice) error {
	for _, n := range notices {
		if !w.wants(n.Service) {
			continue
		}
		if err := w.send(toWatchEvent(n)); err != nil {
			return err
		}
	}
	return nil
}

// sync tells how things stand, if that is wanted, and that this was the past.
func (w *watcher) sync() error {
	now := time.Now().UnixMilli()
	if w.req.GetSnapshot() {
		for _, st := range w.agent.List() {
			if !w.wants(st.Name) {
				continue
			}
			err := w.send(&gladsheimv1.WatchEvent{
				Sequence: w.last, TimeUnixMs: now, Item: &gladsheimv1.WatchEvent_Snapshot{Snapshot: toServiceStatus(st)},
			})
			if err != nil {
				return err
			}
		}
	}
	return w.send(&gladsheimv1.WatchEvent{
		Sequence: w.last, TimeUnixMs: now, Item: &gladsheimv1.WatchEvent_Synced{Synced: &gladsheimv1.Synced{}},
	})
}

// present tells a notice as it comes, and what was lost before it.
func (w *watcher) present(n service.Notice) error {
	if err := w.hole(n.Sequence - 1); err != nil {
		return err
	}
	w.last = n.Sequence
	return w.tell([]service.Notice{n})
}

// hole tells what came after the last notice seen, up to one of a sequence, and was
// lost on the way here because the client was too slow; nothing if there is no
// such. What is still kept is not lost.
func (w *watcher) hole(last uint64) error {
	if last <= w.last {
		return nil
	}
	after := w.last
	w.last = last
	if gap, err := w.resume(after); err != nil || !gap || !w.req.GetSnapshot() {
		return err
	}
	return w.sync()
}

func (w *watcher) gap(first, last uint64) error {
	return w.send(&gladsheimv1.WatchEvent{
		Sequence: last, TimeUnixMs: time.Now().UnixMilli(),
		Item: &gladsheimv1.WatchEvent_Gap{Gap: &gladsheimv1.Gap{FromSequence: first, ToSequence: last}},
	})
}

func toWatchEvent(n service.Notice) *gladsheimv1.WatchEvent {
	ev := &gladsheimv1.Event{
		ServiceName: n.Service.String(), Kind: eventKind(n), Reason: utf8(n.Reason), Detail: clip(n.Detail, maxText),
		State: gladsheimv1.ServiceState(n.Public), Phase: n.State.String(), Incarnation: n.Incarnation, ProcessId: int32(n.PID),
		Exit: toExit(n.Exit),
	}
	if n.Service.IsZero() { // of the host, which has none
		ev.State, ev.Phase = gladsheimv1.ServiceState_SERVICE_STATE_UNKNOWN, ""
	}
	if asked(n) {
		ev.Actor = utf8(n.Actor)
	}
	return &gladsheimv1.WatchEvent{Sequence: n.Sequence, TimeUnixMs: millis(n.Time), Item: &gladsheimv1.WatchEvent_Event{Event: ev}}
}

// asked tells whether somebody asked for what n tells.
func asked(n service.Notice) bool {
	switch n.Kind {
	case service.NoticeRegistered, service.NoticeUnregistered:
		return true
	}
	for k := service.Start; k <= service.Kill; k++ {
		if n.Reason == k.String() {
			return true
		}
	}
	return n.Reason == service.CauseAsked.String()
}

// stateWords say what happened when a service came into a state.
var stateWords = [...]string{
	service.Stopped: "stopped", service.Adopting: "adopting", service.Launching: "starting", service.Starting: "started",
	service.Running: "ready", service.Stopping: "stopping", service.Clearing: "clearing", service.Backoff: "restarting",
	service.Crashed: "crashed", service.Held: "held", service.Waiting: "waiting",
}

// asides are the reasons of notices about a service whose state stays.
var asides = []string{
	"stuck", "unrecorded", "restored", "displaced", "log_disk_full", "log_disk_recovered", "log_lost",
	"reload", "schedule", "notify", "hook", "reloading", "reloaded", "says-stopping", "main-process",
}

// memory are the verdicts that say there was too little of it.
var memory = []service.Verdict{service.VerdictOwnOOM, service.VerdictAncestorOOM, service.VerdictHostOOM}

// eventKind is the word for a notice on the wire.
func eventKind(n service.Notice) string {
	switch {
	case n.Kind == service.NoticeState && n.Reason == "signal": // it changed no state
		return "signalled"
	case n.Kind == service.NoticeState && slices.Contains(asides, n.Reason):
		return n.Reason
	case n.Kind == service.NoticeState:
		return stateWords[n.State]
	case n.Kind == service.NoticeExit && n.Exit != nil && slices.Contains(memory, n.Exit.Verdict):
		return "oom-killed"
	case n.Kind == service.NoticeExit:
		return "exited"
	case n.Kind == service.NoticeHealth:
		return n.Health.String()
	case n.Kind == service.NoticeLimits:
		return "limits-changed"
	}
	return n.Kind.String()
}

const minHealthInterval = 100 * time.Millisecond

// SubscribeServiceHealth sends the verdict at once, at each change, and each
// interval if one is asked for.
func (g *gladsheim) SubscribeServiceHealth(req *gladsheimv1.HealthSubscribeRequest, ss grpc.ServerStreamingServer[gladsheimv1.HealthUpdate]) error {
	interval := time.Duration(req.GetUpdateIntervalMs()) * time.Millisecond
	if interval != 0 {
		interval = max(interval, minHealthInterval)
	}
	st, err := g.find("watch the health of", req.GetServiceName())
	if err != nil {
		return err
	}
	name := st.Name
	last, notices, err := g.agent.Watch(ss.Context())
	if err != nil {
		return err
	}
	var tick <-chan time.Time
	if interval != 0 {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		tick = ticker.C
	}
	told := service.NumHealth // nothing yet
	tell := func(st *service.Status, due bool) error {
		now := st.Verdict().Status
		if !due && now == told {
			return nil
		}
		update := &gladsheimv1.HealthUpdate{Health: toHealth(st), UpdateTimeUnix: time.Now().Unix(), StateChanged: told != service.NumHealth && told != now}
		told = now
		return ss.Send(update)
	}
	for due := true; ; {
		read := g.agent.Sequence() // notices up to this one are in what is read
		if st, err = g.agent.Status(name); err != nil {
			return inAnswerTo("watch the health of", err)
		}
		if st, err = g.looked(ss.Context(), st); err != nil {
			return err
		}
		if err := tell(st, due); err != nil {
			return err
		}
		// What did not last is in its notice alone. So it is read anew when no notice waits.
		due = false
		for stale := false; !stale || len(notices) > 0; {
			select {
			case n, open := <-notices:
				if !open {
					return ss.Context().Err()
				}
				own, lost := n.Service == name, n.Sequence != last+1
				last = lastLost(g.agent, notices, n.Sequence)
				stale = stale || own || lost || last != n.Sequence // one of its own may have been left out
				if own && n.Kind == service.NoticeHealth && n.Sequence > read {
					if st, err = g.agent.Status(name); err != nil {
						return inAnswerTo("watch the health of", err)
					}
					if err := tell(then(st, n), false); err != nil {
						return err
					}
				}
			case <-tick:
				due, stale = true, true
			}
		}
	}
}

// then is how a service was when there was news of its health: as it is, unless that has
// changed since. What the notice does not tell is left out.
func then(st *service.Status, n service.Notice) *service.Status {
	if st.Health.Status == n.Health {
		return st
	}
	was := *st
	was.Health = service.Health{Status: n.Health, Strategy: st.Health.Strategy, Message: n.Detail, Failures: n.Failures, Failed: n.Failures > 0}
	if n.Health != service.Checking { // which is so before any check
		was.Health.LastCheck = n.Time
	}
	return &was
}

// lastLost is the sequence of the last notice after received if all those were
// lost, which no later notice tells; else it is received. Notices are numbered
// and sent under one lock and only the caller reads them, so that up to latest
// each was received, or waits, or was lost.
func lastLost(agent Agent, notices <-chan service.Notice, received uint64) uint64 {
	if latest := agent.Sequence(); len(notices) == 0 {
		return latest
	}
	return received
}
