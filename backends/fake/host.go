package fake

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
)

// Host is the machine that fake backends run on: its processes outlive every
// Backend, as real ones outlive the agent. Its methods are what a test does to
// the machine and sees of it; they may be called at any time. A Host belongs
// to one synctest bubble.
type Host struct {
	mu       sync.Mutex
	boots    int
	pids     int
	groups   []*group // in the order of their launches; none that was released
	scripts  map[service.Name][]Script
	launches map[service.Name]int
	lives    map[service.Name][]*Life
	peak     map[service.Name]int

	troubles map[service.Name]service.LogTrouble // that last
	watches  func(service.LogTrouble)
}

// NewHost is a machine that has just booted.
func NewHost() *Host {
	return &Host{
		pids:     1000,
		scripts:  map[service.Name][]Script{},
		launches: map[service.Name]int{}, lives: map[service.Name][]*Life{}, peak: map[service.Name]int{},
		troubles: map[service.Name]service.LogTrouble{},
	}
}

// WatchLogs implements backends.LogTeller.
func (h *Host) WatchLogs(tell func(service.LogTrouble)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watches = tell
	for _, t := range h.troubles {
		tell(t)
	}
}

// Trouble has a log be in trouble, or not any more.
func (h *Host) Trouble(t service.LogTrouble) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.troubles[t.Service] = t; !t.Lasts() {
		delete(h.troubles, t.Service)
	}
	if h.watches != nil {
		h.watches(t)
	}
}

// group is one incarnation as a kernel knows it.
type group struct {
	host   *Host
	ref    service.Ref
	launch service.Launch
	script Script
	parent *Backend // whose child the main process is

	life      *Life // nil until the program begins
	began     time.Time
	stop      *time.Timer // of an end that is to come
	main      bool        // the main process lives
	children  []int       // that live
	exit      service.Exit
	exitedAt  time.Time
	oom       service.OOM
	level     string
	doomed    bool            // SIGKILL waits for processes that can not die
	leftovers int             // children that we killed after the main process had ended
	limits    service.Limits  // that hold
	drifts    []service.Drift // by somebody else, that nobody has looked at

	ice       ice
	halt      halt
	tell      map[*int]func(file string) // who hears what is written
	pressed   map[pressure]func()        // who hears of pressure
	tally     service.Tally
	displaced chan struct{} // closed when somebody has taken the main process out of its place

	beside map[*int]context.CancelFunc // what runs beside the main process

	ended    chan struct{} // closed when the main process has ended
	empty    chan struct{} // closed when no process is left
	released *service.Remains
}

// Script sets how the launches of a service behave from now on: the first
// script is for the next launch, the last for all that follow it.
func (h *Host) Script(name service.Name, scripts ...Script) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.scripts[name] = scripts
}

// nextScript takes the script of the next launch. The caller holds the lock.
func (h *Host) nextScript(name service.Name) (s Script, ok bool) {
	scripts := h.scripts[name]
	if len(scripts) == 0 {
		return Script{}, false
	}
	if len(scripts) > 1 {
		h.scripts[name] = scripts[1:]
	}
	return scripts[0], true
}

// Crash ends the main process of the latest incarnation of a service. It
// panics when that has none.
func (h *Host) Crash(name service.Name, exit service.Exit) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running(name).end(End{Exit: exit})
}

// Write has somebody write to a file of the running incarnation's cgroup, or the kernel
// have news there.
func (h *Host) Write(name service.Name, file string) {
	h.mu.Lock()
	listeners := slices.Collect(maps.Values(h.running(name).tell))
	h.mu.Unlock()
	for _, tell := range listeners {
		tell(file)
	}
}

// Change has somebody else change limits of the running incarnation.
func (h *Host) Change(name service.Name, l service.Limits) {
	h.mu.Lock()
	g := h.running(name)
	for r, q := range l {
		if q.Set {
			g.drifts = append(g.drifts, service.Drift{Resource: service.Resource(r), File: "file", Was: g.limits.Over(untouched)[r], Is: q})
		}
	}
	g.limits = l.Over(g.limits)
	h.mu.Unlock()
	h.Write(name, "file")
}

// Count has the kernel have counted that of the running incarnation, and tell.
func (h *Host) Count(name service.Name, tally service.Tally) {
	h.mu.Lock()
	h.running(name).tally = tally
	h.mu.Unlock()
	h.Write(name, "memory.events")
}

// Press has tasks of the running incarnation held up.
func (h *Host) Press(name service.Name, of service.PressureOf, full bool) {
	h.mu.Lock()
	tell := h.running(name).pressed[pressure{of, full}]
	h.mu.Unlock()
	if tell != nil {
		tell()
	}
}

// Displace takes the main process of the latest incarnation of a service out of
// its place. It panics when that has none.
func (h *Host) Displace(name service.Name) {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.running(name).displaced)
}

// OOMKill kills the latest incarnation of a service for want of memory: at its
// own limit, at that of the cgroup level, or on the host. It panics when the
// service has no main process.
func (h *Host) OOMKill(name service.Name, oom service.OOM, level string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running(name).end(End{Exit: service.Exit{Signal: syscall.SIGKILL}, OOM: oom, Level: level})
}

func (h *Host) running(name service.Name) *group {
	for _, g := range slices.Backward(h.groups) {
		if g.ref.Name == name && g.main {
			return g
		}
	}
	panic(fmt.Sprintf("fake: no main process of %s runs", name))
}

// Free lets the processes of a service die that were Unkillable; those that
// have been killed meanwhile die at once.
func (h *Host) Free(name service.Name) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.groups {
		if g.ref.Name == name {
			g.script.Unkillable = false
			if g.doomed {
				g.kill()
			}
		}
	}
}

// Reboot ends every process without a word to anybody's parent, and gives the
// host another boot id.
func (h *Host) Reboot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.groups {
		g.script.Unkillable = false
		g.kill()
	}
	h.groups = nil
	h.boots++
}

// Process is one process of the host.
type Process struct {
	backends.Process
	Service     service.Name
	Incarnation uint64
}

// Processes lists what runs on the host.
func (h *Host) Processes() []Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []Process
	for _, g := range h.groups {
		for _, p := range g.processes() {
			all = append(all, Process{p, g.ref.Name, g.ref.Incarnation})
		}
	}
	return all
}

// Launches counts the calls of Launch for a service, failed ones included.
func (h *Host) Launches(name service.Name) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.launches[name]
}

// Runs counts the programs of a service that have begun to run.
func (h *Host) Runs(name service.Name) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.lives[name])
}

// Life is one program that has begun to run: what really came of it, whoever was
// told.
type Life struct {
	Incarnation uint64
	Ended       bool // its main process
	End         End  // how; After is 0
}

// Lives tells of the programs of a service in the order of their beginnings, over
// reboots as well.
func (h *Host) Lives(name service.Name) []Life {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []Life
	for _, l := range h.lives[name] {
		all = append(all, *l)
	}
	return all
}

// Places lists the incarnations that were not released, with processes or without.
func (h *Host) Places() []service.Ref {
	h.mu.Lock()
	defer h.mu.Unlock()
	var refs []service.Ref
	for _, g := range h.groups {
		refs = append(refs, g.ref)
	}
	return refs
}

// IncarnationsAlive counts the incarnations of a service that have a process.
func (h *Host) IncarnationsAlive(name service.Name) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.alive(name)
}

// PeakAlive is the most incarnations of a service that ever had a process at
// the same moment; more than 1 breaks invariant I2.
func (h *Host) PeakAlive(name service.Name) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.peak[name]
}

func (h *Host) alive(name service.Name) int {
	n := 0
	for _, g := range h.groups {
		if g.ref.Name == name && g.populated() {
			n++
		}
	}
	return n
}

// find gives the incarnation at the place that ref names, nil for none. The
// caller holds the lock, as for all that follows.
func (h *Host) find(ref service.Ref) *group {
	for _, g := range h.groups {
		if g.ref.Name == ref.Name && g.ref.Incarnation == ref.Incarnation {
			return g
		}
	}
	return nil
}

func (h *Host) remove(g *group) {
	h.groups = slices.DeleteFunc(h.groups, func(other *group) bool { return other == g })
}

func (h *Host) newPID() int {
	h.pids++
	return h.pids
}

func (h *Host) bootID() string { return fmt.Sprintf("boot-%d", h.boots) }

// run opens the gate: the program begins.
func (g *group) run() {
	g.main, g.began, g.life = true, time.Now(), &Life{Incarnation: g.ref.Incarnation}
	for range g.script.Children {
		g.children = append(g.children, g.host.newPID())
	}
	name := g.ref.Name
	g.host.lives[name] = append(g.host.lives[name], g.life)
	g.host.peak[name] = max(g.host.peak[name], g.host.alive(name))
	if g.script.End != nil {
		g.schedule(*g.script.End)
	}
}

// schedule lets the main process end later, or now.
func (g *group) schedule(e End) {
	if g.stop != nil {
		g.stop.Stop()
	}
	if e.After == 0 {
		g.end(e)
		return
	}
	g.stop = time.AfterFunc(e.After, func() {
		g.host.mu.Lock()
		defer g.host.mu.Unlock()
		if g.ice.frozen() {
			g.ice.end = &e
			return
		}
		g.end(e)
	})
}

// end ends the main process.
func (g *group) end(e End) {
	if !g.main {
		return
	}
	if g.stop != nil {
		g.stop.Stop()
	}
	g.main, g.exit, g.exitedAt, g.oom, g.level = false, e.Exit, time.Now(), e.OOM, e.Level
	g.life.Ended, g.life.End = true, End{Exit: e.Exit, OOM: e.OOM, Level: e.Level}
	if e.OOM != service.OOMNone {
		g.children = nil
	}
	close(g.ended)
	for _, end := range g.beside {
		end()
	}
	g.settle()
}

// kill sends SIGKILL to every process.
func (g *group) kill() {
	g.doomed = true
	if g.script.Unkillable {
		return
	}
	if g.main {
		g.children = nil
		g.end(End{Exit: service.Exit{Signal: syscall.SIGKILL}})
		return
	}
	g.leftovers += len(g.children)
	g.children = nil
	g.settle()
}

// settle tells when the last process is gone.
func (g *group) settle() {
	select {
	case <-g.empty:
	default:
		if !g.populated() {
			close(g.empty)
		}
	}
}

func (g *group) populated() bool { return g.main || len(g.children) > 0 }

func (g *group) processes() []backends.Process {
	command := strings.Join(g.launch.Spec.Exec, " ")
	var all []backends.Process
	parent := 1
	if g.main {
		parent = g.ref.PID
		all = append(all, backends.Process{PID: g.ref.PID, Parent: 1, Command: command})
	}
	for _, pid := range g.children {
		all = append(all, backends.Process{PID: pid, Parent: parent, Command: command})
	}
	return all
}

func (g *group) usage() service.Usage {
	u := service.Usage{Source: "cgroup", Memory: uint64(len(g.processes())) << 20}
	if g.script.Usage != nil {
		u = g.script.Usage(time.Since(g.began))
	}
	if !u.Pids.Set {
		u.Pids = service.Of(uint64(len(g.processes())))
	}
	return u
}
