// Package exec runs services on hosts that offer neither systemd nor cgroup
// v2: each in a session of its own, with resource limits per process, counted
// from /proc. It enforces the number of open files and nothing else, and says
// so.
//
// What belongs to an incarnation is known by a brand that the kernel hands
// down: a value of RLIMIT_RTTIME that names the agent, the service and the
// incarnation (see brand.go). Fork, exec, setsid and the death of parents do
// not take it away, an agent that was restarted finds it again, and so killing
// reaches what has left the process group. It is no wall: a process may lower
// its limits, and with them lose the brand, so KillAll is not claimed. One that
// does is still found in the session of others that carry it, and a main
// process in the session that it leads.
//
// Orphans are given to the shim (see package launch), which tells of their ends.
package exec

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/internal/launch"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

// Backend launches plain processes. Its methods may be called by many
// goroutines at once.
type Backend struct {
	watch   *watch.Watcher
	proc    procfs.FS
	agentID string
	boot    string
	shim    *launch.Shim
	counts  bool // the kernel tells here what was forked last

	mu      sync.Mutex
	handles map[brand]*handle // open ones; nil while one is launched
	beside  map[brand][]int   // see endBeside; nil until it was looked for them
}

var (
	_ backends.Backend   = (*Backend)(nil)
	_ backends.Hasher    = (*Backend)(nil)
	_ backends.LogTeller = (*Backend)(nil)
)

// New makes the backend. agentID tells the services of several agents on one
// host apart and must be the same after a restart; runDir is where its shim is
// found again, and the agent's alone. The watcher and fs stay the caller's; fs
// must be the real /proc.
func New(w *watch.Watcher, fs procfs.FS, agentID, runDir string) (*Backend, error) {
	boot, err := fs.BootID()
	if err != nil {
		return nil, fmt.Errorf("cannot open the exec backend: %w", err)
	}
	if err := canBrand(); err != nil {
		return nil, fmt.Errorf("cannot open the exec backend: %w", err)
	}
	b := &Backend{watch: w, proc: fs, agentID: agentID, boot: boot, counts: fs.TellsNow(), handles: map[brand]*handle{}}
	b.shim = launch.NewShim(launch.ShimConfig{Watcher: w, Dir: runDir, Orphan: b.orphan})
	return b, nil
}

// WatchLogs implements backends.LogTeller.
func (b *Backend) WatchLogs(tell func(service.LogTrouble)) { b.shim.WatchLogs(tell) }

// Name is "exec".
func (b *Backend) Name() string { return "exec" }

// Enforces claims the limits that every process of a service has from its birth, of
// open files and others.
func (b *Backend) Enforces() service.Enforcement {
	e := service.Enforcement{BornInside: true}
	e.Limits[service.NoFile], e.Limits[service.Rlimits] = true, true
	return e
}

// Plan tells the name and the incarnation; there is no place.
func (b *Backend) Plan(l service.Launch) service.Ref {
	return service.Ref{Backend: b.Name(), Name: l.Name, Incarnation: l.Incarnation}
}

// Launch implements backends.Backend.
func (b *Backend) Launch(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
	if missing := b.Enforces().Missing(l.Limits); len(missing) > 0 && !l.Spec.BestEffort {
		return nil, unenforceable("start", l.Name, missing)
	}
	requested := l.Limits
	if l.Limits = withoutRTTime(l.Limits); l.Limits != requested && !l.Spec.BestEffort {
		return nil, refuseRTTime("start", l.Name)
	}
	if ctx.Err() != nil {
		return nil, ended(ctx, "start", l.Name, errors.New("before its process was made"))
	}
	mark := b.brand(l.Name, l.Incarnation)
	if !b.reserve(mark) {
		return nil, &service.Error{Op: "start", Service: l.Name, Kind: service.AlreadyRunning, Reason: service.ReasonPreviousAlive,
			Err: fmt.Errorf("incarnation %d was launched and is not released", l.Incarnation)}
	}
	h, err := b.launch(ctx, l, requested, mark, birth)
	if err != nil {
		b.forget(mark)
		return nil, err
	}
	return h, nil
}

func (b *Backend) launch(ctx context.Context, l service.Launch, requested service.Limits, mark brand, birth backends.Birth) (*handle, error) {
	if err := b.refusePrevious(l, mark); err != nil {
		return nil, err
	}
	child, err := launch.Start(ctx, b.watch, launch.Request{Launch: l, CgroupFD: -1, Brand: uint64(mark), Shim: b.shim})
	if err != nil {
		return nil, err
	}
	ref := b.Plan(l)
	ref.PID, ref.StartTicks, ref.BootID = child.PID(), child.StartTicks(), b.boot
	if err := birth.Identify(ref); err != nil {
		child.Abandon()
		return nil, &service.Error{Op: "start", Service: l.Name, Kind: service.KindOf(err), Err: fmt.Errorf("record its identity: %w", err)}
	}
	h := b.open(ref, mark, child.Process(), requested, &l.Spec)
	return h, h.begin(ctx, func(ctx context.Context) error {
		return child.Bear(ctx, birth, h.Run, func(ctx context.Context) error { return h.begin(ctx, child.Open) })
	})
}

// refusePrevious looks for processes that carry the brand already, whoever
// launched them: they could not be told from the new ones.
func (b *Backend) refusePrevious(l service.Launch, mark brand) error {
	alive, err := b.survey(mark, nil)
	if err != nil {
		return &service.Error{Op: "start", Service: l.Name, Kind: service.HostUnavailable, Err: err}
	}
	if len(alive) > 0 {
		return &service.Error{Op: "start", Service: l.Name, Kind: service.Exists, Reason: service.ReasonPreviousAlive,
			Err: fmt.Errorf("%d processes of incarnation %d live, the first is %d", len(alive), l.Incarnation, alive[0].PID)}
	}
	return nil
}

// cleanTime is how long the cleaning after a launch that was given up may take.
const cleanTime = 10 * time.Second

// begin opens the gate, or does all that comes before as well. A launch that fails or is
// given up at the moment of the execve ends the main process alone; what that has forked by
// then is killed here, and so is what hooks have left.
func (h *handle) begin(ctx context.Context, open func(context.Context) error) error {
	err := open(ctx)
	if err == nil {
		return nil
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	defer cancel()
	left := h.kill(clean, "start")
	if left == nil {
		return err
	}
	return &service.Error{Op: "start", Service: h.ref.Name, Kind: service.KindOf(err), Reason: service.ReasonOf(left),
		Err: fmt.Errorf("%w; then, while cleaning up: %w", err, left)}
}

// Adopt implements backends.Backend. Besides the identity, the brand must be
// the incarnation's; a process that has given up its brand, as one does that
// sets RLIMIT_RTTIME itself, must lead a session and process group of its own,
// as all do that we launched.
func (b *Backend) Adopt(ctx context.Context, ref service.Ref, l service.Launch) (backends.Handle, error) {
	if ctx.Err() != nil {
		return nil, ended(ctx, "adopt", ref.Name, errors.New("before it was looked for"))
	}
	mark := b.brand(ref.Name, ref.Incarnation)
	if err := b.endBeside(ctx, mark); err != nil {
		return nil, &service.Error{Op: "adopt", Service: ref.Name, Kind: service.HostUnavailable, Err: err}
	}
	main, err := b.findMain(ref, mark)
	if err != nil {
		return nil, &service.Error{Op: "adopt", Service: ref.Name, Kind: service.HostUnavailable, Err: err}
	}
	if main != nil {
		return b.open(ref, mark, main, l.Limits, &l.Spec), nil
	}
	rest, err := b.survey(mark, nil)
	if err != nil {
		return nil, &service.Error{Op: "adopt", Service: ref.Name, Kind: service.HostUnavailable, Err: err}
	}
	if len(rest) == 0 {
		b.shim.Released(ref.Name, ref.Incarnation)
		return nil, backends.ErrGone
	}
	return b.open(ref, mark, nil, l.Limits, &l.Spec), nil
}

// findMain takes up the main process that ref names, or tells nil when it is
// gone.
func (b *Backend) findMain(ref service.Ref, mark brand) (*process.Process, error) {
	if ref.PID == 0 || ref.BootID != b.boot {
		return nil, nil
	}
	for {
		main, err := b.lookFor(ref, mark)
		if !errors.Is(err, procfs.ErrNoProcess) { // else it ended meanwhile
			return main, err
		}
	}
}

func (b *Backend) lookFor(ref service.Ref, mark brand) (*process.Process, error) {
	main, err := launch.Find(b.watch, b.proc, b.shim, ref.PID, ref.StartTicks)
	if errors.Is(err, process.ErrGone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if main.Ended() { // as the shim tells: of a child of its own
		return main, nil
	}
	// main is held by now, so this can not be the brand of a successor, if
	// the process still has not ended afterwards.
	found, err := b.brandOf(ref.PID)
	if err == nil && (found == mark || found == 0 && leads(ref.PID)) {
		return main, nil
	}
	main.Close()
	return nil, err
}

// leads tells whether pid leads a session and a process group.
func leads(pid int) bool {
	group, err := unix.Getpgid(pid)
	return err == nil && group == pid && inSession(pid, pid)
}

// Leftovers implements backends.Backend: it knows services among known only. Who
// the main process is, every process tells that has left its soft limit alone; since
// each may set that to anything, one that lives must carry the brand itself.
func (b *Backend) Leftovers(ctx context.Context, known []service.Name) ([]service.Ref, error) {
	names := b.hashes(known)
	pids, err := b.proc.PIDs()
	if err != nil {
		return nil, &service.Error{Op: "look for leftovers", Kind: service.HostUnavailable, Err: err}
	}
	accounts := map[brand]account{}
	for _, pid := range pids {
		if ctx.Err() != nil {
			return nil, ended(ctx, "look for leftovers", service.Name{}, errors.New("before all processes were seen"))
		}
		mark, leader, err := b.marksOf(pid)
		if _, ours := names[mark.service()]; err != nil || !mark.is() || !ours {
			continue
		}
		if p, err := b.proc.Process(pid); err != nil || !p.Alive() {
			continue
		}
		a := accounts[mark]
		if _, _, told := launch.ParseSelf(leader); told {
			a.disputed = a.disputed || a.leader != 0 && a.leader != leader
			a.leader = leader
		}
		accounts[mark] = a
	}
	var refs []service.Ref
	for mark, a := range accounts {
		ref := service.Ref{Backend: b.Name(), Name: names[mark.service()], Incarnation: mark.incarnation()}
		if a.leader != 0 && !a.disputed {
			pid, ticks, _ := launch.ParseSelf(a.leader)
			led, err := process.Believable(b.proc, pid, ticks, func() (bool, error) {
				found, err := b.brandOf(pid)
				return found == mark, err
			})
			if err != nil {
				return nil, &service.Error{Op: "look for leftovers", Service: ref.Name, Kind: service.HostUnavailable, Err: err}
			}
			if led {
				ref.PID, ref.StartTicks, ref.BootID = pid, ticks, b.boot
			}
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

func (b *Backend) hashes(known []service.Name) map[uint32]service.Name {
	names := make(map[uint32]service.Name, len(known))
	for _, name := range known {
		names[b.hash(name)] = name
	}
	return names
}

// Unclaimed implements backends.Hasher.
func (b *Backend) Unclaimed(ctx context.Context, known []service.Name) ([]int, error) {
	const op = "look for processes of services that are not known"
	names := b.hashes(known)
	pids, err := b.proc.PIDs()
	if err != nil {
		return nil, &service.Error{Op: op, Kind: service.HostUnavailable, Err: err}
	}
	var found []int
	for _, pid := range pids {
		if ctx.Err() != nil {
			return nil, ended(ctx, op, service.Name{}, errors.New("before all processes were seen"))
		}
		mark, err := b.brandOf(pid)
		if _, ours := names[mark.service()]; err != nil || !mark.is() || ours {
			continue
		}
		if p, err := b.proc.Process(pid); err == nil && p.Alive() {
			found = append(found, pid)
		}
	}
	return found, nil
}

// account is what the living processes of an incarnation tell of who led it.
type account struct {
	leader   uint64 // see launch.Self; 0 when none tells
	disputed bool   // one of them lies
}

// Close implements backends.Backend.
func (b *Backend) Close() error { return b.shim.Close() }

func (b *Backend) open(ref service.Ref, mark brand, main *process.Process, limits service.Limits, spec *service.Spec) *handle {
	h := &handle{backend: b, ref: ref, brand: mark, main: process.Lead(main), like: launch.LikenessOf(spec), turn: make(chan struct{}, 1), requested: limits, condemned: map[int]bool{}, corpses: map[int]bool{}}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handles[mark] = h
	return h
}

// reserve tells false if the incarnation is there already.
func (b *Backend) reserve(mark brand) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, taken := b.handles[mark]
	if !taken {
		b.handles[mark] = nil
	}
	return !taken
}

func (b *Backend) forget(mark brand) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.handles, mark)
}

// leads finds the open incarnation whose main process leads a session.
func (b *Backend) leads(session int, mark *brand) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for m, h := range b.handles {
		if h != nil && h.main != nil && h.main.PID() == session {
			*mark = m
			return true
		}
	}
	return false
}

// orphan is told of each orphan that was reaped. It is of a service if it carried a
// brand, or was in the session of a main process that is known.
func (b *Backend) orphan(o launch.Orphan) {
	mark := brand(o.Brand)
	if !mark.is() && !b.leads(o.Session, &mark) {
		return
	}
	b.mu.Lock()
	h := b.handles[mark]
	b.mu.Unlock()
	if h != nil {
		h.buried(o)
	}
}

func unenforceable(op string, name service.Name, missing []service.Resource) error {
	words := make([]string, len(missing))
	for i, r := range missing {
		words[i] = r.String()
	}
	return &service.Error{Op: op, Service: name, Kind: service.Unenforceable, Reason: service.ReasonLimitUnenforceable,
		Err: fmt.Errorf("the exec backend, which uses no cgroups, can not enforce %s; remove the limit, or set best_effort to run without it",
			strings.Join(words, ", "))}
}

// ended is the error of what was given up because ctx has ended.
func ended(ctx context.Context, op string, name service.Name, when error) error {
	kind := service.Cancelled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		kind = service.Timeout
	}
	return &service.Error{Op: op, Service: name, Kind: kind, Err: fmt.Errorf("given up %w: %w", when, ctx.Err())}
}
