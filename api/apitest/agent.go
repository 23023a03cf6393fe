// Package apitest is a scripted agent behind the API: services are entries of a
// map, time stands still, and any method can be made to fail, block or panic.
// It is for the tests of the API and of its clients.
package apitest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/logfile"
)

// Service is what the agent plays for one service.
type Service struct {
	Status    service.Status
	Document  []byte
	Usage     service.Usage
	Processes []service.Process
	Exits     []service.ExitRecord
	Outputs   []service.Output
	History   []service.Sample // nil: it does not ask for it
	Advice    *service.Advice  // nil: too little is known of it
	Checks    []service.Probe  // nil: it is not checked
}

// Before is the sequence before the first notice: an agent counts on from those
// before it.
const Before = 1_000_000

// Agent plays api.Agent. Set the fields before it is used.
type Agent struct {
	Now     time.Time
	LogDir  string // of NAME.log
	Info    service.HostInfo
	Found   []service.Finding
	Config  []byte
	Older   []service.OlderDefault // of Configuration
	Keep    int                    // how many notices are kept; 0 for all
	Backlog int                    // how many notices wait for a slow watcher before it misses some; 0 for 64

	// Before runs first in each method, with the method's name; its error is
	// the method's. It may block or panic.
	Before func(ctx context.Context, method string) error

	mu            sync.Mutex
	services      map[service.Name]*Service
	notices       []service.Notice
	sequence      uint64 // beyond Before
	watchers      map[chan service.Notice]bool
	watchingUsage int
	calls         []any
}

// Put makes a service known as it is, without a word.
func (a *Agent) Put(s *Service) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.services == nil {
		a.services = map[service.Name]*Service{}
	}
	a.services[s.Status.Name] = s
}

// Change edits a service's status and tells the watchers.
func (a *Agent) Change(name string, kind service.NoticeKind, reason, detail string, edit func(*service.Status)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.change(a.services[service.MustName(name)], kind, reason, detail, edit)
}

// Calls are the options of all Start, Stop, Restart, Signal and SetLimits calls
// so far, in order.
func (a *Agent) Calls() []any {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.calls)
}

// Watchers tells how many watches are open.
func (a *Agent) Watchers() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.watchers)
}

func (a *Agent) change(s *Service, kind service.NoticeKind, reason, detail string, edit func(*service.Status)) *service.Status {
	st := s.Status
	edit(&st)
	s.Status = st
	a.tell(st, kind, reason, detail)
	return &st
}

func (a *Agent) tell(st service.Status, kind service.NoticeKind, reason, detail string) {
	a.sequence++
	n := st.Notice(kind, reason, detail)
	n.Sequence, n.Time = Before+a.sequence, a.Now
	a.notices = append(a.notices, n)
	if a.Keep > 0 && len(a.notices) > a.Keep {
		a.notices = a.notices[len(a.notices)-a.Keep:]
	}
	for w := range a.watchers {
		select {
		case w <- n:
		default: // too slow: it sees a hole
		}
	}
}

// enter is the beginning of each method: the script, then the lock.
func (a *Agent) enter(ctx context.Context, method string) error {
	if a.Before != nil {
		if err := a.Before(ctx, method); err != nil {
			return err
		}
	}
	a.mu.Lock()
	return nil
}

// of is enter for a method about one service.
func (a *Agent) of(ctx context.Context, method string, name service.Name) (*Service, error) {
	if err := a.enter(ctx, method); err != nil {
		return nil, err
	}
	s, ok := a.services[name]
	if !ok {
		a.mu.Unlock()
		return nil, &service.Error{Op: "find", Service: name, Kind: service.NotFound, Reason: service.ReasonServiceNotFound, Err: errors.New("no such service")}
	}
	return s, nil
}

// Start makes a service run at once.
func (a *Agent) Start(ctx context.Context, name service.Name, o service.StartOptions) (*service.Status, error) {
	s, err := a.of(ctx, "Start", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	a.calls = append(a.calls, o)
	if refused := s.Status.Machine.Refuses(service.Start); refused != nil {
		refused.Service = name
		return nil, refused
	}
	return a.start(s, o.Actor), nil
}

func (a *Agent) start(s *Service, actor string) *service.Status {
	return a.change(s, service.NoticeState, "asked", "", func(st *service.Status) {
		st.Machine = service.Machine{State: service.Running, Incarnation: st.Machine.Incarnation + 1, Policy: st.Spec.Restart}
		st.Ref = service.Ref{Backend: "fake", Name: st.Name, Incarnation: st.Machine.Incarnation, PID: 5000 + int(st.Machine.Incarnation)}
		st.Started, st.Ended, st.Error, st.LastActor = a.Now, time.Time{}, "", actor
		st.Health = service.Health{Status: service.Checking}
	})
}

// Stop makes a service stopped at once.
func (a *Agent) Stop(ctx context.Context, name service.Name, o service.StopOptions) (*service.Status, error) {
	s, err := a.of(ctx, "Stop", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	a.calls = append(a.calls, o)
	if refused := s.Status.Machine.Refuses(service.Stop); refused != nil {
		refused.Service = name
		return nil, refused
	}
	return a.change(s, service.NoticeState, "asked", "", func(st *service.Status) {
		st.Machine.State, st.Ended, st.LastActor = service.Stopped, a.Now, o.Actor
		st.Health = service.Health{}
	}), nil
}

// Restart makes a service run anew at once.
func (a *Agent) Restart(ctx context.Context, name service.Name, o service.StopOptions) (*service.Status, error) {
	s, err := a.of(ctx, "Restart", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	a.calls = append(a.calls, o)
	return a.start(s, o.Actor), nil
}

// RollingRestart makes services run anew at once, one after the other.
func (a *Agent) RollingRestart(ctx context.Context, names []service.Name, opts service.RollingOptions, tell func(service.Rolling) error) error {
	for i, name := range names {
		if err := tell(service.Rolling{Service: name, Step: service.RollingBegun}); err != nil {
			return err
		}
		st, err := a.Restart(ctx, name, opts.Stop)
		if err != nil {
			_ = tell(service.Rolling{Service: name, Step: service.RollingFailed, Err: err})
			for _, rest := range names[i+1:] {
				_ = tell(service.Rolling{Service: rest, Step: service.RollingUntouched})
			}
			return err
		}
		if err := tell(service.Rolling{Service: name, Step: service.RollingDone, Status: st}); err != nil {
			return err
		}
	}
	return nil
}

// Signal remembers the signal.
func (a *Agent) Signal(ctx context.Context, name service.Name, sig syscall.Signal, actor string) (*service.Status, error) {
	s, err := a.of(ctx, "Signal", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	a.calls = append(a.calls, sig)
	if s.Status.PID() == 0 {
		return nil, notRunning("signal", name)
	}
	st := s.Status
	return &st, nil
}

// ReloadService is told of what runs and says how.
func (a *Agent) ReloadService(ctx context.Context, name service.Name, actor string) (*service.Status, error) {
	s, err := a.of(ctx, "ReloadService", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	switch {
	case s.Status.Spec.Reload.IsZero():
		return nil, &service.Error{Op: "reload", Service: name, Kind: service.Conflict, Reason: service.ReasonNoReload, Err: errors.New("its definition does not say how")}
	case s.Status.PID() == 0:
		return nil, notRunning("reload", name)
	}
	return a.change(s, service.NoticeState, "reload", "by "+actor, func(st *service.Status) { st.LastActor = actor }), nil
}

// Freeze freezes what runs, by its own cgroup.
func (a *Agent) Freeze(ctx context.Context, name service.Name, actor string) (*service.Status, error) {
	return a.still(ctx, "Freeze", name, actor, service.NoticeFrozen, func(st *service.Status) {
		st.Ref.Cgroup = cmp.Or(st.Ref.Cgroup, "/gladsheim/svc-"+name.String())
		st.FrozenBy, st.Machine.Frozen = st.Ref.Cgroup, true
	})
}

// Thaw thaws it.
func (a *Agent) Thaw(ctx context.Context, name service.Name, actor string) (*service.Status, error) {
	return a.still(ctx, "Thaw", name, actor, service.NoticeThawed, func(st *service.Status) { st.FrozenBy, st.Machine.Frozen = "", false })
}

func (a *Agent) still(ctx context.Context, method string, name service.Name, actor string, kind service.NoticeKind, edit func(*service.Status)) (*service.Status, error) {
	s, err := a.of(ctx, method, name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	if s.Status.PID() == 0 {
		return nil, notRunning(method, name)
	}
	return a.change(s, kind, service.CauseAsked.String(), "", func(st *service.Status) {
		st.LastActor = actor
		edit(st)
	}), nil
}

func notRunning(op string, name service.Name) error {
	return &service.Error{Op: op, Service: name, Kind: service.NotRunning, Reason: service.ReasonNotRunning, Err: errors.New("it is not running")}
}

// Status tells how a service stands.
func (a *Agent) Status(name service.Name) (*service.Status, error) {
	s, err := a.of(context.Background(), "Status", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	st := s.Status
	return &st, nil
}

// List gives services in some states, or all, ordered by name.
func (a *Agent) List(states ...service.Public) []*service.Status {
	if err := a.enter(context.Background(), "List"); err != nil {
		return nil
	}
	defer a.mu.Unlock()
	return slices.DeleteFunc(a.list(), func(st *service.Status) bool {
		return len(states) > 0 && !slices.Contains(states, st.Machine.Public())
	})
}

func (a *Agent) list() []*service.Status {
	var out []*service.Status
	for _, name := range a.names() {
		st := a.services[name].Status
		out = append(out, &st)
	}
	return out
}

func (a *Agent) names() []service.Name {
	return slices.SortedFunc(maps.Keys(a.services), func(x, y service.Name) int {
		if x.String() < y.String() {
			return -1
		}
		return 1
	})
}

// Exits gives the latest ends.
func (a *Agent) Exits(name service.Name, n int) ([]service.ExitRecord, error) {
	s, err := a.of(context.Background(), "Exits", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	if n < 1 {
		n = len(s.Exits)
	}
	return slices.Clone(s.Exits[:min(n, len(s.Exits))]), nil
}

// LogFile is NAME.log in LogDir.
func (a *Agent) LogFile(name service.Name) (*logfile.File, error) {
	s, err := a.of(context.Background(), "LogFile", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	if s.Status.Spec.Log == service.LogNull {
		return nil, &service.Error{Op: "read the log of", Service: name, Kind: service.Conflict, Err: errors.New("its output is not kept")}
	}
	return logfile.New(filepath.Join(a.LogDir, name.String()+".log")), nil
}

// Outputs tells what Service.Outputs holds.
func (a *Agent) Outputs(name service.Name) []service.Output {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.services[name]; s != nil {
		return slices.Clone(s.Outputs)
	}
	return nil
}

// FindOutputs is Outputs.
func (a *Agent) FindOutputs(_ context.Context, name service.Name) ([]service.Output, error) {
	return a.Outputs(name), nil
}

// Usage tells what Service.Usage holds.
func (a *Agent) Usage(ctx context.Context, name service.Name) (service.Usage, time.Time, error) {
	s, err := a.of(ctx, "Usage", name)
	if err != nil {
		return service.Usage{}, time.Time{}, err
	}
	defer a.mu.Unlock()
	if s.Status.PID() == 0 {
		return service.Usage{}, time.Time{}, notRunning("measure", name)
	}
	return s.Usage, a.Now, nil
}

// Limits tells what Status.Applied holds.
func (a *Agent) Limits(ctx context.Context, name service.Name) (service.Applied, error) {
	s, err := a.of(ctx, "Limits", name)
	if err != nil {
		return service.Applied{}, err
	}
	defer a.mu.Unlock()
	return s.Status.Applied, nil
}

// SetLimits makes the limits hold at once.
func (a *Agent) SetLimits(ctx context.Context, name service.Name, limits service.Limits, warnings service.Warnings, force bool, actor string) (service.Applied, error) {
	s, err := a.of(ctx, "SetLimits", name)
	if err != nil {
		return service.Applied{}, err
	}
	defer a.mu.Unlock()
	a.calls = append(a.calls, limits)
	st := a.change(s, service.NoticeLimits, "asked", "", func(st *service.Status) {
		for r, q := range limits {
			if q.Set {
				st.Applied[r] = service.LimitReport{Requested: q, Applied: q, Effective: q, Enforced: true}
			}
		}
		st.Warnings, st.LastActor = warnings.Over(st.Warnings), actor
	})
	return st.Applied, nil
}

// CheckHealth tells what Status.Health holds.
func (a *Agent) CheckHealth(ctx context.Context, name service.Name) (service.Health, error) {
	s, err := a.of(ctx, "CheckHealth", name)
	if err != nil {
		return service.Health{}, err
	}
	defer a.mu.Unlock()
	return s.Status.Health, nil
}

// CheckNow adds a check that failed to Service.Checks, and tells what Status.Health holds.
func (a *Agent) CheckNow(ctx context.Context, name service.Name) (service.Health, error) {
	s, err := a.of(ctx, "CheckNow", name)
	if err != nil {
		return service.Health{}, err
	}
	defer a.mu.Unlock()
	if s.Checks == nil {
		return service.Health{}, &service.Error{Op: "check", Service: name, Kind: service.NotRunning, Reason: service.ReasonNotRunning, Err: errors.New("it is not checked")}
	}
	s.Checks = append(s.Checks, service.Probe{At: a.Now, Took: 1500 * time.Microsecond, Failed: true, Status: s.Status.Health.Status, Message: "asked for now"})
	return s.Status.Health, nil
}

// Checks tells what Service.Checks holds.
func (a *Agent) Checks(name service.Name) ([]service.Probe, error) {
	s, err := a.of(context.Background(), "Checks", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	return slices.Clone(s.Checks), nil
}

// Processes tells what Service.Processes holds.
func (a *Agent) Processes(ctx context.Context, name service.Name) ([]service.Process, error) {
	s, err := a.of(ctx, "Processes", name)
	if err != nil {
		return nil, err
	}
	defer a.mu.Unlock()
	return slices.Clone(s.Processes), nil
}

// Watch plays News.Watch.
func (a *Agent) Watch(ctx context.Context) (uint64, <-chan service.Notice, error) {
	if err := a.enter(ctx, "Watch"); err != nil {
		return 0, nil, err
	}
	defer a.mu.Unlock()
	size := a.Backlog
	if size == 0 {
		size = 64
	}
	notices := make(chan service.Notice, size)
	if a.watchers == nil {
		a.watchers = map[chan service.Notice]bool{}
	}
	a.watchers[notices] = true
	context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.watchers, notices)
		close(notices)
	})
	return Before + a.sequence, notices, nil
}

// Kept plays News.Kept.
func (a *Agent) Kept(after uint64) []service.Notice {
	if err := a.enter(context.Background(), "Kept"); err != nil {
		return nil
	}
	defer a.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(a.notices), func(n service.Notice) bool { return n.Sequence <= after })
}

// Sequence is that of the latest notice.
func (a *Agent) Sequence() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return Before + a.sequence
}

// KeptSince is Now: time stands still.
func (a *Agent) KeptSince() time.Time { return a.Now }

// Host tells what Info holds, and counts the services.
func (a *Agent) Host(ctx context.Context) (service.HostInfo, error) {
	if err := a.enter(ctx, "Host"); err != nil {
		return service.HostInfo{}, err
	}
	defer a.mu.Unlock()
	info := a.Info
	for _, st := range a.list() {
		info.States[st.Machine.Public()]++
	}
	return info, nil
}

// Doctor tells what Found holds.
func (a *Agent) Doctor(ctx context.Context) []service.Finding {
	if err := a.enter(ctx, "Doctor"); err != nil {
		return []service.Finding{{Level: service.SeverityProblem, Title: fmt.Sprint(err)}}
	}
	defer a.mu.Unlock()
	return a.Found
}

// Configuration tells what Config holds.
func (a *Agent) Configuration() service.Configuration {
	if err := a.enter(context.Background(), "Configuration"); err != nil {
		return service.Configuration{}
	}
	defer a.mu.Unlock()
	return service.Configuration{Document: a.Config, Source: "/etc/gladsheim/gladsheim.json", Loaded: a.Now, Older: a.Older}
}
