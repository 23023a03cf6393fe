package backendtest_test

import (
	"context"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/backendtest"
	"github.com/gladsheim/gladsheim/backends/exec"
	"github.com/gladsheim/gladsheim/procfs"
	"github.com/gladsheim/gladsheim/watch"
)

// realCrime is a way in which a backend with real processes can be wrong, and
// the law that finds out.
type realCrime struct {
	name   string
	law    string
	commit func(backends.Backend) backends.Backend
}

// before changes what is launched.
func before(change func(l *service.Launch)) func(backends.Backend) backends.Backend {
	return func(b backends.Backend) backends.Backend {
		return culprit{Backend: b, launch: func(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
			change(&l)
			return b.Launch(ctx, l, birth)
		}}
	}
}

// by has a shell do something in the child before it becomes the program.
func by(shell string) func(backends.Backend) backends.Backend {
	return before(func(l *service.Launch) {
		l.Spec.Exec = slices.Concat([]string{"/bin/sh", "-c", shell + `; exec "$@"`, "sh"}, l.Spec.Exec)
	})
}

// after replaces methods of each handle that is launched.
func after(replace func(h backends.Handle) backends.Handle) func(backends.Backend) backends.Backend {
	return func(b backends.Backend) backends.Backend {
		return culprit{Backend: b, launch: func(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
			h, err := b.Launch(ctx, l, birth)
			if err != nil {
				return nil, err
			}
			return replace(h), nil
		}}
	}
}

func realCrimes() []realCrime {
	return []realCrime{
		{"leaks a descriptor", "no descriptor but 0, 1 and 2 is open, whatever the agent has open", by("exec 7</dev/null")},
		{"leaks the environment", "the environment is the definition's and a fixed PATH, and nothing of the agent's", before(func(l *service.Launch) {
			environment := map[string]string{"GLADSHEIM_SECRET": os.Getenv("GLADSHEIM_SECRET")}
			for name, value := range l.Spec.Environment {
				environment[name] = value
			}
			l.Spec.Environment = environment
		})},
		{"forgets the umask", "the umask is the definition's", by("umask 0")},
		{"leaves a signal ignored", "no signal is blocked or ignored, whatever the agent ignores", by("trap '' PIPE")},
		{"runs everything as itself", "user and group are the definition's, with the user's other groups and no capability", before(func(l *service.Launch) {
			l.Spec.User, l.Spec.Group = "", ""
		})},
		{"forgets the limit of open files", "the limit of open files holds, and core dumps are off", by("ulimit -n 77")},
		{"allows new privileges", "no_new_privs is set unless the definition allows new privileges", before(func(l *service.Launch) {
			l.Spec.AllowNewPrivs = true
		})},
		{"empties the log", "the log file gets stdout and stderr, behind what it holds", before(func(l *service.Launch) {
			_ = os.Truncate(l.LogFile, 0)
		})},
		{"leaves the log open", "launches and releases, failing ones too, thirty in all, leak nothing", before(func(l *service.Launch) {
			_, _ = syscall.Open(l.LogFile, syscall.O_RDONLY|syscall.O_CREAT, 0o640)
		})},
		{"keeps zombies", "launches and releases, failing ones too, thirty in all, leak nothing", before(func(*service.Launch) {
			_, _ = os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		})},
		{"kills the process group only", "Kill ends a daemon in a session of its own with no descriptor open", after(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, kill: func(context.Context) error {
				_ = syscall.Kill(-h.Ref().PID, syscall.SIGKILL)
				<-h.Exited()
				return nil
			}}
		})},
		{"forgets who left its session", "Release ends a tree of orphaned sessions that ignore SIGTERM", after(func(h backends.Handle) backends.Handle {
			committed := false // once: the suite has to clean up
			return handle{Handle: h, release: func(ctx context.Context) (service.Remains, error) {
				if committed {
					return h.Release(ctx)
				}
				committed = true
				_ = syscall.Kill(-h.Ref().PID, syscall.SIGKILL)
				<-h.Exited()
				return service.Remains{}, nil
			}}
		})},
		{"reports exit 0", "a program that ends at once is told exactly, however many do", after(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, exit: func() service.Exit { return service.Exit{} }}
		})},
		{"takes each deadly signal for a core dump", "a core dump is told, and only where there is one", after(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, exit: func() service.Exit {
				exit := h.Exit()
				exit.Core = exit.Signal != 0
				return exit
			}}
		})},
		{"believes that SIGKILL always works", "who does not die of SIGKILL is named, holds up nobody else, and is gone once it dies", after(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, kill: func(ctx context.Context) error {
				_ = h.Kill(ctx)
				return nil
			}}
		})},
		{"sets no open files and says it did", "a change of the open files reaches the running process", after(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, limit: func(ctx context.Context, l service.Limits) (service.Applied, error) {
				applied, err := h.Limits(ctx)
				applied[service.NoFile].Applied = l[service.NoFile]
				return applied, err
			}}
		})},
		{"hurts bystanders", "Kill ends a fork bomb, kind plain, within a second", killsNeighbours},
	}
}

// killsNeighbours kills what else it has launched, as one would that kills by
// the name of the program.
func killsNeighbours(b backends.Backend) backends.Backend {
	var all []backends.Handle
	return culprit{Backend: b, launch: func(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
		h, err := b.Launch(ctx, l, birth)
		if err != nil {
			return nil, err
		}
		all = append(all, h)
		return handle{Handle: h, kill: func(ctx context.Context) error {
			for _, other := range all {
				_ = other.Kill(ctx)
			}
			return nil
		}}, nil
	}}
}

// tryWithProcesses is the suite with an exec backend that commits a crime.
func tryWithProcesses(t *testing.T, c realCrime) {
	backendtest.Run(t, backendtest.Subject{
		New: func(t *testing.T) backends.Backend {
			w, err := watch.New()
			require.NoError(t, err)
			fs, err := procfs.New("/proc")
			require.NoError(t, err)
			b, err := exec.New(w, fs, "agent", backendtest.RunDir(t))
			require.NoError(t, err)
			t.Cleanup(func() { _ = b.Close(); _ = w.Close() })
			return c.commit(b)
		},
		Workload: backendtest.Workload(t),
	})
}

// TestConvictionsWithProcesses lets the suite try backends with real processes
// that are wrong in one way each.
func TestConvictionsWithProcesses(t *testing.T) {
	workload := backendtest.Workload(t)
	for _, c := range realCrimes() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			convict(t, c.law, crimeVariable+"="+c.name, "GLADSHEIM_WORKLOAD="+workload)
		})
	}
}
