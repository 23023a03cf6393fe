package fake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// handle is one look at a group. Adopted ones differ in what they know of its
// end.
type handle struct {
	backend *Backend
	group   *group
	exited  <-chan struct{} // with the host locked
	froze   <-chan struct{}
	told    bool // the exit is told to us, because the process is our child

	requested, instead service.Limits // with the host locked
}

func (h *handle) Ref() service.Ref {
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	return h.group.ref
}

func (h *handle) Exited() <-chan struct{} {
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	return h.exited
}

// Succeed makes one of Script.Children the main process.
func (h *handle) Succeed(ctx context.Context, pid int) error {
	const op = "succeed"
	if err := h.begin(ctx, op); err != nil {
		return err
	}
	defer h.group.host.mu.Unlock()
	g := h.group
	at := slices.Index(g.children, pid)
	switch {
	case g.main && pid == g.ref.PID:
		return nil
	case at < 0:
		return &service.Error{Op: op, Service: g.ref.Name, Kind: service.Conflict, Err: fmt.Errorf("process %d is none of the service's own", pid)}
	case g.main:
		g.children[at] = g.ref.PID
	default:
		g.children = slices.Delete(g.children, at, at+1)
		g.main, g.ended, g.exit, g.exitedAt = true, make(chan struct{}), service.Exit{}, time.Time{}
	}
	g.ref.PID, g.ref.StartTicks = pid, uint64(pid)*100
	h.exited, h.told = g.ended, true
	return nil
}

func (h *handle) Displaced() <-chan struct{} { return h.group.displaced }

// Hear hears what Host.Write says.
func (h *handle) Hear(tell func(file string)) (leave func(), err error) {
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	g, key := h.group, new(int)
	if g.tell == nil {
		g.tell = map[*int]func(string){}
	}
	g.tell[key] = tell
	return func() {
		g.host.mu.Lock()
		defer g.host.mu.Unlock()
		delete(g.tell, key)
	}, nil
}

// Gauge reads what Script.Usage says.
func (h *handle) Gauge() (backends.Gauge, error) { return gauge{h.group}, nil }

type gauge struct{ group *group }

func (x gauge) Read() (service.Gauge, error) {
	x.group.host.mu.Lock()
	defer x.group.host.mu.Unlock()
	if x.group.released != nil {
		return service.Gauge{}, fs.ErrNotExist
	}
	u := x.group.usage()
	return service.Gauge{Memory: service.Of(u.Memory), CPUTime: u.CPUTime, ThrottledPeriods: u.ThrottledPeriods}, nil
}

// Cache takes all of the page cache for unused.
func (x gauge) Cache() (service.Quota, error) {
	x.group.host.mu.Lock()
	defer x.group.host.mu.Unlock()
	return x.group.usage().File, nil
}

func (gauge) Close() error { return nil }

// Tally reads what Host.Count says.
func (h *handle) Tally() (service.Tally, error) {
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	return h.group.tally, nil
}

// Press hears what Host.Press says.
func (h *handle) Press(of service.PressureOf, full bool, _, _ time.Duration, tell func()) (leave func(), err error) {
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	if h.group.pressed == nil {
		h.group.pressed = map[pressure]func(){}
	}
	h.group.pressed[pressure{of, full}] = tell
	return func() {
		h.group.host.mu.Lock()
		defer h.group.host.mu.Unlock()
		delete(h.group.pressed, pressure{of, full})
	}, nil
}

// pressure is what is watched: some tasks that are held up, or all of them.
type pressure struct {
	of   service.PressureOf
	full bool
}

func (h *handle) Close() error { return nil }

func (h *handle) Exit() service.Exit {
	if !h.told {
		return service.Exit{Unknown: "agent_was_down"}
	}
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	return h.group.exit
}

func (h *handle) ExitedAt() time.Time {
	if !h.told {
		return time.Time{}
	}
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	return h.group.exitedAt
}

// begin is how each operation but Kill and Release begins; it leaves with the
// host locked when there is no error.
func (h *handle) begin(ctx context.Context, operation string) error {
	if err := h.backend.fault(operation, h.group.ref); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return gaveUp(operation, h.group.ref, err)
	}
	h.group.host.mu.Lock()
	if h.group.released != nil {
		h.group.host.mu.Unlock()
		return h.notRunning(operation)
	}
	return nil
}

func (h *handle) notRunning(operation string) error {
	return &service.Error{
		Op: operation, Service: h.group.ref.Name, Kind: service.NotRunning, Reason: service.ReasonNotRunning,
		Err: errors.New("it has ended"),
	}
}

func (h *handle) Signal(ctx context.Context, sig syscall.Signal) error {
	if err := h.begin(ctx, "signal"); err != nil {
		return err
	}
	defer h.group.host.mu.Unlock()
	if !h.group.main {
		return h.notRunning("signal")
	}
	h.group.signal(sig)
	return nil
}

// Run does what Script.Run says.
func (h *handle) Run(ctx context.Context, p backends.Program) (backends.Ran, error) {
	const op = "run"
	if err := h.begin(ctx, op); err != nil {
		return backends.Ran{}, err
	}
	g := h.group
	var refusal error
	switch {
	case g.life != nil && !g.main && !p.After: // else it waits at its gate
		refusal = h.notRunning(op)
	case g.ice.frozen():
		refusal = &service.Error{Op: op, Service: g.ref.Name, Kind: service.Conflict, Err: errors.New("it is frozen")}
	}
	if refusal != nil {
		g.host.mu.Unlock()
		return backends.Ran{}, refusal
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	key, run := new(int), g.script.Run
	if g.beside == nil {
		g.beside = map[*int]context.CancelFunc{}
	}
	g.beside[key] = end
	g.host.mu.Unlock()
	var ran backends.Ran
	var err error
	if run != nil {
		ran, err = run(ctx, p)
	}
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	delete(g.beside, key)
	switch {
	case ctx.Err() == nil:
		return ran, err
	case g.life != nil && !g.main && !p.After:
		return ran, h.notRunning(op)
	}
	return ran, gaveUp(op, g.ref, context.Cause(ctx))
}

// signal lets a signal arrive. Those to the frozen wait, but for SIGKILL, as do those to
// the stopped, but for SIGCONT.
func (g *group) signal(sig syscall.Signal) {
	ends, asks := deadly(sig)
	switch {
	case g.ice.frozen() && sig != syscall.SIGKILL:
		g.ice.signals = append(g.ice.signals, sig)
	case stops(sig), sig == syscall.SIGCONT:
		g.pause(stops(sig))
	case g.halt.stopped() && sig != syscall.SIGKILL:
		g.halt.signals = append(g.halt.signals, sig)
	case !ends || g.script.Unkillable || (asks && g.script.Stubborn):
	case asks && g.script.Term != nil:
		g.schedule(*g.script.Term)
	default:
		g.end(End{Exit: service.Exit{Signal: sig}})
	}
}

func (h *handle) Kill(ctx context.Context) error {
	if err := h.backend.fault("kill", h.group.ref); err != nil {
		return err
	}
	g := h.group
	g.host.mu.Lock()
	g.kill()
	g.host.mu.Unlock()
	select {
	case <-g.empty:
		return nil
	default:
	}
	select {
	case <-g.empty:
		return nil
	case <-ctx.Done():
		return &service.Error{
			Op: "kill", Service: g.ref.Name, Kind: service.Timeout, Reason: service.ReasonUnkillable,
			Err: fmt.Errorf("these processes would not die: %s", h.survivors()),
		}
	}
}

func (h *handle) survivors() string {
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	var names []string
	for _, p := range h.group.processes() {
		names = append(names, fmt.Sprintf("%d (%s)", p.PID, p.Command))
	}
	return strings.Join(names, ", ")
}

func (h *handle) Limit(ctx context.Context, l service.Limits) (service.Applied, error) {
	if most, d := l[service.MemoryMax], h.group.script.Reclaim; most.Set && d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return service.Applied{}, gaveUp("limit", h.group.ref, ctx.Err())
		}
	}
	return h.Force(ctx, l)
}

func (h *handle) Force(ctx context.Context, l service.Limits) (service.Applied, error) {
	return h.change(ctx, l, func() { h.requested, h.instead = l.Over(h.requested), h.instead.Without(l) })
}

func (h *handle) Throttle(ctx context.Context, l service.Limits) (service.Applied, error) {
	return h.change(ctx, l, func() { h.instead = l.Instead(h.requested).Over(h.instead.Without(l)) })
}

func (h *handle) change(ctx context.Context, l service.Limits, note func()) (service.Applied, error) {
	if err := h.begin(ctx, "limit"); err != nil {
		return service.Applied{}, err
	}
	g := h.group
	defer g.host.mu.Unlock()
	if err := h.backend.enforceable("limit", g.ref.Name, l); err != nil {
		return service.Applied{}, err
	}
	if !g.main {
		return service.Applied{}, h.notRunning("limit")
	}
	g.limits = l.Over(g.limits)
	note()
	return h.applied(), nil
}

// Drift sees what Host.Change did.
func (h *handle) Drift(ctx context.Context, answer func(service.Drift) service.OnDrift) ([]service.Drift, error) {
	if err := h.begin(ctx, "drift"); err != nil {
		return nil, err
	}
	g := h.group
	defer g.host.mu.Unlock()
	drifts := g.drifts
	g.drifts = nil
	for i, d := range drifts {
		todo := answer(d)
		if todo == service.DriftBack {
			drifts[i].Fault = h.backend.fault("repair", g.ref)
		}
		switch {
		case todo == service.DriftLater || drifts[i].Fault != nil:
			g.drifts = append(g.drifts, d)
		case todo == service.DriftBack:
			g.limits[d.Resource] = d.Was
		}
	}
	return drifts, nil
}

func (h *handle) Limits(ctx context.Context) (service.Applied, error) {
	if err := h.begin(ctx, "limits"); err != nil {
		return service.Applied{}, err
	}
	defer h.group.host.mu.Unlock()
	return h.applied(), nil
}

// untouched are the limits that hold where nobody set any.
var untouched = service.Limits{
	service.MemoryMax: service.Of(service.Unlimited), service.MemoryHigh: service.Of(service.Unlimited),
	service.MemorySwapMax: service.Of(service.Unlimited), service.CPUMax: service.Of(service.Unlimited),
	service.CPUWeight: service.Of(100), service.PidsMax: service.Of(service.Unlimited),
	service.IOWeight: service.Of(100), service.NoFile: service.Of(1024), service.MemoryLow: service.Of(0),
	service.MemoryMin: service.Of(0), service.CPUIdle: service.Of(0), service.CPUBurst: service.Of(0),
	service.CPUSetCPUs: service.Of(service.Unlimited), service.CPUSetMems: service.Of(service.Unlimited),
	service.MemoryZswapMax: service.Of(service.Unlimited), service.OOMGroup: service.Of(1),
	service.IOMax: service.Of(service.Unlimited), service.Rlimits: service.Of(service.Unlimited),
	service.HugetlbMax: service.Of(service.Unlimited), service.IODeviceWeight: service.Of(service.Unlimited),
}

func (h *handle) applied() service.Applied {
	var a service.Applied
	holds := h.group.limits.Over(untouched)
	for r := range a {
		a[r].Requested, a[r].Enforced = h.requested[r], h.backend.enforces.Limits[r]
		if a[r].Enforced {
			a[r].Applied, a[r].Effective = holds[r], holds[r]
		}
	}
	a.Held(h.instead)
	return a
}

func (h *handle) Usage(ctx context.Context) (service.Usage, error) {
	if err := h.begin(ctx, "usage"); err != nil {
		return service.Usage{}, err
	}
	defer h.group.host.mu.Unlock()
	return h.group.usage(), nil
}

// Owns knows the processes that Processes tells of.
func (h *handle) Owns(pid int) (bool, error) {
	h.group.host.mu.Lock()
	defer h.group.host.mu.Unlock()
	for _, p := range h.group.processes() {
		if p.PID == pid {
			return true, nil
		}
	}
	return false, nil
}

func (h *handle) Processes(ctx context.Context) ([]backends.Process, error) {
	if err := h.begin(ctx, "processes"); err != nil {
		return nil, err
	}
	defer h.group.host.mu.Unlock()
	return h.group.processes(), nil
}

func (h *handle) Finish(ctx context.Context) (service.Remains, error) {
	if err := h.backend.fault("finish", h.group.ref); err != nil {
		return service.Remains{}, err
	}
	return h.finish(ctx)
}

func (h *handle) finish(ctx context.Context) (service.Remains, error) {
	if err := h.Kill(ctx); err != nil {
		return service.Remains{}, err
	}
	g := h.group
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	if g.released != nil {
		return *g.released, nil
	}
	return service.Remains{Usage: g.usage(), OOM: g.oom, OOMLevel: g.level, Leftovers: g.leftovers}, nil
}

func (h *handle) Release(ctx context.Context) (service.Remains, error) {
	if err := h.backend.fault("release", h.group.ref); err != nil {
		return service.Remains{}, err
	}
	r, err := h.finish(ctx)
	if err != nil {
		return service.Remains{}, err
	}
	g := h.group
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	if g.released == nil {
		g.released = &r
		g.host.remove(g)
	}
	return *g.released, nil
}
