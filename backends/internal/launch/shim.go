package launch

import (
	"context"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends/internal/launch/gate"
	"github.com/gladsheim/gladsheim/backends/internal/process"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

// Shim is the way to the shim: one small process that is the parent of every service: it
// outlives the agent, reaps, and keeps how its children ended until an agent has
// heard of it (see package gate). It is started with the first child, found again
// by the next agent by its socket, and leaves when there is nothing left to do.
//
// Its methods may be called by many goroutines at once. It is a process.Teller.
type Shim struct {
	cfg     ShimConfig
	turn    chan struct{} // held by the one who connects or forks
	readers sync.WaitGroup

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu        sync.Mutex
	closed    bool
	line      *line // the connection, nil while there is none
	searching bool  // for the process, after a connection was lost
	ends      map[gate.Child]ending
	waiting   map[gate.Child]func(process.Told, bool)
	strays    map[int]*stray                // who waits for what may come to be an orphan, by PID: each is held by a pidfd
	stirs     map[gate.Child]func()         // who waits for stops
	unsaid    []string                      // what was heard of, and nobody was told so
	troubles  map[string]service.LogTrouble // that last, by whose
	untold    []service.LogTrouble          // that are over, and nobody watched
	watches   func(service.LogTrouble)      // is told of them; nil: nobody is
	self      *process.Process              // the shim, if we started it
}

var _ process.Teller = (*Shim)(nil)

// ShimConfig is what a Shim works with.
type ShimConfig struct {
	Watcher *watch.Watcher
	Dir     string // of its socket; nobody else may write there
	// Place opens the cgroup that the process is born in, and which is closed after
	// use; that is the agent's if it gives nil, or is nil.
	Place func(context.Context) (*os.File, error)
	// Orphan is told of processes of services whose own parent had ended, when
	// they end; it may be nil. It must not block.
	Orphan func(Orphan)
}

// stray is one who waits for the end of a process that may come to be an orphan.
type stray struct{ tell func(process.Told, bool) }

// ending is how a child ended, and whose it was.
type ending struct {
	process.Told
	whose string
}

// Orphan is a process that ended after its parent.
type Orphan struct {
	PID     int
	Brand   uint64 // see Request
	Session int
	CPUTime time.Duration // its own and that of descendants it had waited for
}

// NewShim does nothing yet.
func NewShim(cfg ShimConfig) *Shim {
	ctx, cancel := context.WithCancel(context.Background())
	return &Shim{
		cfg: cfg, ctx: ctx, cancel: cancel, turn: make(chan struct{}, 1), ends: map[gate.Child]ending{},
		waiting: map[gate.Child]func(process.Told, bool){}, strays: map[int]*stray{}, stirs: map[gate.Child]func(){}, troubles: map[string]service.LogTrouble{},
	}
}

// Close ends the connection. The process stays as long as it has children, or ends
// to tell.
func (s *Shim) Close() error {
	s.mu.Lock()
	s.closed = true
	l, self := s.line, s.self
	s.mu.Unlock()
	s.cancel()
	if l != nil {
		l.conn.Close()
	}
	s.readers.Wait()
	if self != nil {
		return self.Close()
	}
	return nil
}

// Await implements process.Teller: a shim tells of its own children only, and of orphans.
func (s *Shim) Await(pid int, startTicks uint64, tell func(process.Told, bool)) (forget func()) {
	c := gate.Child{PID: int32(pid), StartTicks: startTicks}
	s.mu.Lock()
	told, ended := s.ends[c]
	waits := !ended && (s.searching || s.line != nil && s.line.children[c])
	mine := &stray{tell}
	switch {
	case waits:
		s.waiting[c] = tell
	case !ended:
		s.strays[pid] = mine
	}
	s.mu.Unlock()
	if !waits {
		tell(told.Told, ended)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.waiting, c)
		if s.strays[pid] == mine {
			delete(s.strays, pid)
		}
	}
}

// Ended implements process.Teller. It looks for a shim that an earlier agent has
// started, and asks it: that of a child which is no more may not have been told yet.
func (s *Shim) Ended(pid int, startTicks uint64) (process.Told, bool, error) {
	c := gate.Child{PID: int32(pid), StartTicks: startTicks}
	ctx, cancel := context.WithTimeout(s.ctx, reapWait)
	defer cancel()
	for {
		l, err := s.find(ctx)
		if err != nil {
			s.search()
			return process.Told{}, false, fmt.Errorf("ask the shim, which is the parent of services: %w", err)
		}
		s.mu.Lock()
		told, ended := s.ends[c]
		lives := l != nil && l.children[c]
		s.mu.Unlock()
		if ended || !lives {
			return told.Told, ended, nil
		}
		if s.ask(ctx, l) == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			told, ended = s.ends[c]
			return told.Told, ended, nil
		}
	}
}

// ask returns when the ends of all that is no more have come.
func (s *Shim) ask(ctx context.Context, l *line) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := l.say(gate.SayAsk, ""); err != nil {
		l.hangUp()
		return err
	}
	return l.hear(ctx)
}

// Find is process.Find for what the shim has made; it may be nil. A gate that was
// not opened when its agent ended is about to leave, and that is waited for: it is
// found to have ended without having run.
func Find(w *watch.Watcher, fs procfs.FS, s *Shim, pid int, startTicks uint64) (*process.Process, error) {
	if s == nil {
		return process.Find(w, fs, nil, pid, startTicks)
	}
	p, err := process.Find(w, fs, s, pid, startTicks)
	if err != nil || p.Ended() {
		return p, err
	}
	if now, err := fs.Process(pid); err != nil || now.Name != gate.Name {
		return p, nil
	}
	select {
	case <-p.Exited():
		_ = p.Close()
		return process.Find(w, fs, s, pid, startTicks)
	case <-time.After(reapWait):
		return p, nil
	}
}

// Released says that how an incarnation ended was written down, or that nobody will
// ask: it need not be kept any more, nor told again. Without a shim there is nothing to say.
func (s *Shim) Released(name service.Name, incarnation uint64) {
	if s == nil {
		return
	}
	was := whose(name, incarnation)
	ctx, cancel := context.WithTimeout(s.ctx, reapWait)
	defer cancel()
	l, err := s.find(ctx)
	if err == nil && l != nil {
		err = l.say(gate.SayHeard, was)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.ends, func(_ gate.Child, e ending) bool { return e.whose == was })
	if err != nil {
		s.unsaid = append(s.unsaid, was) // for the next connection; without one, the next agent is told once more
	}
}

// abandon is Released for what came to nothing, of which the shim may have made a
// gate all the same.
func (s *Shim) abandon(whose string) {
	s.mu.Lock()
	l := s.line
	s.mu.Unlock()
	if l != nil && l.say(gate.SayHeard, whose) == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsaid = append(s.unsaid, whose)
}

func whose(name service.Name, incarnation uint64) string {
	return fmt.Sprintf("%s %d", name, incarnation)
}

// born takes up children.
func (s *Shim) born(l *line, children ...gate.Child) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range children {
		l.children[c] = true
	}
}

// toldOf is what the end of a process says.
func toldOf(e gate.End) process.Told {
	told := process.Told{Used: process.Used{CPUTime: time.Duration(e.CPU), Known: true}, At: time.Unix(0, e.At), NeverRan: e.Gate}
	if e.Status.Exited() {
		told.Exit.Code = e.Status.ExitStatus()
	} else {
		told.Exit = service.Exit{Signal: e.Status.Signal(), Core: e.Status.CoreDump()}
	}
	return told
}

func (s *Shim) ended(l *line, e gate.End) {
	told := toldOf(e)
	s.mu.Lock()
	s.ends[e.Child] = ending{told, e.Whose}
	tell := s.waiting[e.Child]
	delete(s.waiting, e.Child)
	delete(l.children, e.Child)
	s.mu.Unlock()
	if tell != nil {
		tell(told, true)
	}
}

// orphaned takes the end of a process whose own parent had ended.
func (s *Shim) orphaned(e gate.End) {
	pid := int(e.PID)
	s.mu.Lock()
	waits := s.strays[pid]
	delete(s.strays, pid)
	s.mu.Unlock()
	if waits != nil {
		waits.tell(toldOf(e), true)
	}
	if s.cfg.Orphan != nil {
		s.cfg.Orphan(Orphan{PID: pid, Brand: e.Brand, Session: int(e.Session), CPUTime: time.Duration(e.CPU)})
	}
}

// settle says what could not be said, and tells those who wait for children of
// another shim that nobody will tell them.
func (s *Shim) settle(l *line) {
	s.mu.Lock()
	unsaid := s.unsaid
	s.unsaid = nil
	s.mu.Unlock()
	for i, was := range unsaid {
		if err := l.say(gate.SayHeard, was); err != nil {
			s.mu.Lock()
			s.unsaid = append(s.unsaid, unsaid[i:]...)
			s.mu.Unlock()
			break
		}
		s.mu.Lock()
		maps.DeleteFunc(s.ends, func(_ gate.Child, e ending) bool { return e.whose == was })
		s.mu.Unlock()
	}
	s.orphan()
	s.settleTroubles(l)
}

// orphan tells those who wait for children of no shim that is left that nobody will
// tell them.
func (s *Shim) orphan() {
	var tell []func(process.Told, bool)
	s.mu.Lock()
	for c, waits := range s.waiting {
		if !s.searching && (s.line == nil || !s.line.children[c]) {
			tell = append(tell, waits)
			delete(s.waiting, c)
		}
	}
	s.mu.Unlock()
	for _, told := range tell {
		told(process.Told{}, false)
	}
	s.disappoint()
}
