// Package agent introduces the four servants to each other: Thjalfi launches,
// Byggvir limits and measures, Roskva checks, Skirnir knows and tells. It owns
// the catalogue of definitions, takes up what an earlier agent left, and is
// what the API serves. When it is closed the services run on.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/byggvir"
	"github.com/gladsheim/gladsheim/agent/config"
	"github.com/gladsheim/gladsheim/agent/roskva"
	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/agent/thjalfi"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/journal"
	"github.com/gladsheim/gladsheim/lockfile"
	"github.com/gladsheim/gladsheim/logfile"
	"github.com/gladsheim/gladsheim/notify"
	"github.com/gladsheim/gladsheim/platform"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/sockets"
)

// Config is what an Agent is made of. Every exported field is required.
type Config struct {
	Version     string
	StateDir    string             // what is wanted; survives a reboot
	RunDir      string             // what is; does not
	MakeRunDir  func() error       // as whoever made it did
	LogDir      string             // output of services
	Logs        *logfile.Keeper    // of LogDir
	Journal     journal.Journal    // of the host, where it may be that there is none
	ServicesDir string             // definitions of the host
	Backends    []backends.Backend // that the host offers, the preferred one first
	Findings    []service.Finding  // of who opened them
	Procfs      procfs.FS
	SinceBoot   func() time.Duration // suspended time included, see procfs.SinceBoot
	Facts       platform.Facts
	Power       Power
	Platform    string // whose profile the settings began with
	Settings    config.Agent
	Log         *slog.Logger

	// Nil but in tests.
	fault  func(call, path string) error   // of the store
	spread func() float64                  // see thjalfi.Config
	queues func() ([]sockets.Queue, error) // instead of sockets.Queues
}

// Agent is one running agent. Its methods may be called by many goroutines at
// once.
type Agent struct {
	cfg         Config
	started     time.Time
	atStart     procfs.System
	usedAtStart time.Duration // CPU time, by all services together
	bootID      string
	losing      sync.Mutex          // of locks, once open
	locks       map[string]*os.File // by path
	store       *skirnir.Store
	registry    *skirnir.Registry
	thjalfi     *thjalfi.Thjalfi
	roskva      *roskva.Roskva
	meter       *byggvir.Meter
	together    *byggvir.Meter // of all services
	monitor     *byggvir.Monitor
	history     *byggvir.History // of those who ask for it
	ears        ears
	turns       *turns // to be restarted

	ctx        context.Context // ends when the agent leaves
	leave      context.CancelFunc
	background sync.WaitGroup // of work that nobody waits for

	pending []service.Name // for Autostart
	outputs outputs
	power   supply

	changing    sync.Mutex            // held by whoever changes the catalogue, from the look at it to the change
	writing     sync.Mutex            // see want
	torn        map[service.Name]bool // after a write that failed the disk may hold another than wanted, and if true whether and how it is to run; with writing held
	mu          sync.Mutex            // of what follows; never held across a wait for a service
	settings    config.Agent
	refused     string // why those of the last reload were not taken
	definitions map[service.Name]*definition
	wanted      map[service.Name]skirnir.Wanted       // as last written
	exits       map[service.Name][]service.ExitRecord // see brief
	strangers   map[service.Name]stranger
	blind       map[string]bool                // backends that would not tell what an earlier agent left
	looked      map[service.Name]bool          // whether that is known of a service all the same
	unwritten   map[service.Name]error         // why the latest record of a service is not on disk
	unburied    map[service.Name]bool          // whose exit records are not
	unkept      map[service.Name]lostHistory   // whose history has no file
	starting    map[service.Name]reservation   // of starts and restarts under way
	limiting    map[service.Name]chan struct{} // full while somebody changes limits
	scars       []service.Finding              // of the start
	sightless   error                          // why queues of the host can not be looked at
	complaints  []service.Finding              // of the latest look at the definitions
}

// ErrTaken says that another agent owns the directories.
var ErrTaken = errors.New("another agent owns the directory")

// clearTimeout bounds one attempt to kill and clear before whoever waits is
// told. The kernel ends ten thousand processes in far less.
const clearTimeout = 10 * time.Second

// Open takes the directories, reads what is wanted and what is, and takes up
// what an earlier agent left. If another agent has the directories the error
// wraps ErrTaken and nothing was touched.
func Open(ctx context.Context, cfg Config) (*Agent, error) {
	a := &Agent{
		cfg: cfg, started: time.Now(), settings: cfg.Settings, locks: map[string]*os.File{},
		meter: byggvir.NewMeter(), together: byggvir.NewMeter(), turns: newTurns(),
		definitions: map[service.Name]*definition{}, wanted: map[service.Name]skirnir.Wanted{},
		exits: map[service.Name][]service.ExitRecord{}, strangers: map[service.Name]stranger{},
		blind: map[string]bool{}, looked: map[service.Name]bool{}, starting: map[service.Name]reservation{},
		unwritten: map[service.Name]error{}, unburied: map[service.Name]bool{}, unkept: map[service.Name]lostHistory{}, limiting: map[service.Name]chan struct{}{}, torn: map[service.Name]bool{},
		power:   supply{look: make(chan struct{}, 1), tried: map[service.Name]bool{}},
		outputs: outputs{unsaved: map[service.Name]bool{}, turns: make(chan struct{}, lastLineTurns)},
	}
	if a.cfg.spread == nil {
		a.cfg.spread = rand.Float64
	}
	a.ctx, a.leave = context.WithCancel(context.Background())
	if err := a.lock(cfg.StateDir, cfg.RunDir); err != nil {
		a.unlock()
		return nil, err
	}
	if err := a.open(ctx); err != nil {
		a.unlock()
		return nil, err
	}
	return a, nil
}

func (a *Agent) open(ctx context.Context) error {
	var err error
	if a.bootID, err = a.cfg.Procfs.BootID(); err != nil {
		return err
	}
	if a.atStart, err = a.cfg.Procfs.System(); err != nil {
		return err
	}
	if counter, err := a.counter(); err == nil {
		if u, err := counter.Total(); err == nil { // else it begins to count with the first of them
			a.usedAtStart = u.CPUTime
		}
	}
	// In the log directory two agents would cut the same files. It may be one of
	// the other two.
	if err := a.take(a.logsLock()); err != nil {
		return err
	}
	if a.store, err = skirnir.OpenStore(a.cfg.StateDir, a.cfg.RunDir, a.retakeDir); err != nil {
		return err
	}
	a.store.Fault = a.cfg.fault
	left, err := a.store.Load()
	if err != nil {
		return err
	}
	var fault error
	if a.registry, fault = skirnir.OpenRegistry(a.cfg.RunDir, a.bootID); fault != nil {
		a.scar("the events before this agent could not be read", fault, "nothing has to be done; whoever follows them is told that some are missing")
	}
	a.roskva = roskva.New(a.keepHealth)
	a.history = byggvir.NewHistory(byggvir.HistoryConfig{SinceBoot: a.cfg.SinceBoot, Open: a.openHistory, Lost: a.tellLostHistory})
	a.monitor = byggvir.NewMonitor(byggvir.MonitorConfig{Status: a.registry.Get, Tell: a.tellViolation, Act: a.enforce, Deaf: a.tellDeaf, Hung: a.tellHang, Blind: a.tellBlind, Tables: tables{a}, History: a.history})
	a.ears = ears{notify.New(filepath.Join(a.cfg.RunDir, "notify"))}
	a.thjalfi = thjalfi.New(thjalfi.Config{
		Keeper: keeper{a}, Prober: a.roskva, Monitor: monitor{a.monitor}, Listener: a.ears, SinceBoot: a.cfg.SinceBoot,
		Spread: a.cfg.spread, Turn: a.turns.take, Well: a.well, Outlet: a.outlet, LastLines: a.lastLines, AwaitLine: a.awaitLine, ClearTimeout: clearTimeout,
	})
	a.recallPower()
	a.restore(ctx, left)
	a.pace(a.PowerLevel())
	wait := a.lookAtPower() // before anything is started
	a.background.Go(func() { a.attendPower(wait) })
	return nil
}

// Leave gives up launches under way, and begins none any more; all else goes on
// until Close. It is to be called before whatever waits for the agent's calls:
// systemd launches nothing as long as it waits for the agent to end.
func (a *Agent) Leave() {
	a.leave()
	a.thjalfi.Leave()
}

// Close leaves: changes under way are given up, services run on.
func (a *Agent) Close() {
	a.Leave()
	a.thjalfi.Close()
	a.ears.Close()
	a.monitor.Close()
	a.background.Wait()
	a.history.Close()
	a.roskva.Close()
	if err := a.registry.Close(); err != nil {
		a.cfg.Log.Error("cannot let go of the events", "error", err)
	}
	a.unlock()
}

// lock takes each directory for this agent alone, until the process ends.
func (a *Agent) lock(dirs ...string) error {
	for _, dir := range dirs {
		if err := skirnir.MakeDir(dir, 0o750); err != nil {
			return err
		}
		if err := a.take(lockOf(dir)); err != nil {
			return err
		}
	}
	return nil
}

func lockOf(dir string) string { return filepath.Join(dir, "agent.lock") }

func (a *Agent) logsLock() string { return filepath.Join(a.cfg.LogDir, "logs.lock") }

// take locks a file that it makes if it is missing, until the process ends. Nobody
// else may open it, for whoever may, may lock it too.
func (a *Agent) take(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open the lock: %w", err)
	}
	for _, ours := range a.locks {
		if sameFile(ours, f) {
			f.Close()
			return &service.Error{Op: "use " + filepath.Dir(path), Kind: service.Invalid,
				Err: errors.New("it is given for both state and run: the one outlives a reboot, the other does not")}
		}
	}
	if err = lockfile.Lock(a.cfg.Procfs, f); err != nil {
		f.Close()
		if errors.Is(err, lockfile.ErrHeld) {
			return fmt.Errorf("%w %s", ErrTaken, filepath.Dir(path))
		}
		return fmt.Errorf("cannot lock %s: %w", path, err)
	}
	if of := a.locks[path]; of != nil { // a file that is gone
		of.Close()
	}
	a.locks[path] = f
	return nil
}

func sameFile(f, g *os.File) bool {
	one, err := f.Stat()
	other, err2 := g.Stat()
	return err == nil && err2 == nil && os.SameFile(one, other)
}

func (a *Agent) unlock() {
	for _, f := range a.locks {
		_ = f.Close() // and with it the lock
	}
}
