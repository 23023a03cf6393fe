package backendtest_test

import (
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/backends"
	"github.com/gladsheim/gladsheim/backends/backendtest"
	"github.com/gladsheim/gladsheim/backends/fake"
)

// crime is a way in which a backend can be wrong, and the law that finds out.
type crime struct {
	name   string
	law    string
	commit func(b *fake.Backend) backends.Backend
}

// culprit is a backend that is right but for what is replaced.
type culprit struct {
	backends.Backend
	plan      func(service.Launch) service.Ref
	launch    func(context.Context, service.Launch, backends.Birth) (backends.Handle, error)
	adopt     func(context.Context, service.Ref, service.Launch) (backends.Handle, error)
	leftovers func(context.Context, []service.Name) ([]service.Ref, error)
	close     func() error
}

func (c culprit) Plan(l service.Launch) service.Ref {
	if c.plan != nil {
		return c.plan(l)
	}
	return c.Backend.Plan(l)
}

func (c culprit) Launch(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
	if c.launch != nil {
		return c.launch(ctx, l, birth)
	}
	return c.Backend.Launch(ctx, l, birth)
}

func (c culprit) Adopt(ctx context.Context, ref service.Ref, l service.Launch) (backends.Handle, error) {
	if c.adopt != nil {
		return c.adopt(ctx, ref, l)
	}
	return c.Backend.Adopt(ctx, ref, l)
}

func (c culprit) Leftovers(ctx context.Context, known []service.Name) ([]service.Ref, error) {
	if c.leftovers != nil {
		return c.leftovers(ctx, known)
	}
	return c.Backend.Leftovers(ctx, known)
}

func (c culprit) Close() error {
	if c.close != nil {
		return c.close()
	}
	return c.Backend.Close()
}

// handle is right but for what is replaced.
type handle struct {
	backends.Handle
	exit    func() service.Exit
	signal  func(context.Context, syscall.Signal) error
	kill    func(context.Context) error
	limit   func(context.Context, service.Limits) (service.Applied, error)
	usage   func(context.Context) (service.Usage, error)
	release func(context.Context) (service.Remains, error)
}

func (h handle) Exit() service.Exit {
	if h.exit != nil {
		return h.exit()
	}
	return h.Handle.Exit()
}

func (h handle) Signal(ctx context.Context, sig syscall.Signal) error {
	if h.signal != nil {
		return h.signal(ctx, sig)
	}
	return h.Handle.Signal(ctx, sig)
}

func (h handle) Kill(ctx context.Context) error {
	if h.kill != nil {
		return h.kill(ctx)
	}
	return h.Handle.Kill(ctx)
}

func (h handle) Limit(ctx context.Context, l service.Limits) (service.Applied, error) {
	if h.limit != nil {
		return h.limit(ctx, l)
	}
	return h.Handle.Limit(ctx, l)
}

func (h handle) Usage(ctx context.Context) (service.Usage, error) {
	if h.usage != nil {
		return h.usage(ctx)
	}
	return h.Handle.Usage(ctx)
}

func (h handle) Release(ctx context.Context) (service.Remains, error) {
	if h.release != nil {
		return h.release(ctx)
	}
	return h.Handle.Release(ctx)
}

// everyHandle replaces methods of each handle that is launched or adopted.
func everyHandle(replace func(h backends.Handle) backends.Handle) func(*fake.Backend) backends.Backend {
	return func(b *fake.Backend) backends.Backend {
		return culprit{
			Backend: b,
			launch: func(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
				h, err := b.Launch(ctx, l, birth)
				if err != nil {
					return nil, err
				}
				return replace(h), nil
			},
			adopt: func(ctx context.Context, ref service.Ref, l service.Launch) (backends.Handle, error) {
				h, err := b.Adopt(ctx, ref, l)
				if err != nil {
					return nil, err
				}
				return replace(h), nil
			},
		}
	}
}

func crimes() []crime {
	return []crime{
		{"opens the gate before it is identified", "the program runs only after identify has returned", earlyGate},
		{"takes no heed of a failed record", "when identify fails, nothing has run and nothing is left", recordless},
		{"plans at random", "a plan tells the place and no identity, and touches nothing", func(b *fake.Backend) backends.Backend {
			n := 0
			return culprit{Backend: b, plan: func(l service.Launch) service.Ref {
				ref := b.Plan(l)
				n++
				ref.Cgroup += strconv.Itoa(n)
				return ref
			}}
		}},
		{"tells every exit as clean", "an exit code is told exactly", everyHandle(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, exit: func() service.Exit { return service.Exit{} }}
		})},
		{"invents the exit of what it adopted", "an exit after the adoption is told exactly, or as unknown where the kernel keeps none, never invented", inventive},
		{"signals everybody", "a signal reaches the main process only", everyHandle(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, signal: func(ctx context.Context, _ syscall.Signal) error { return h.Kill(ctx) }}
		})},
		{"signals the dead in silence", "who has ended can not be signalled", everyHandle(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, signal: func(ctx context.Context, sig syscall.Signal) error {
				_ = h.Signal(ctx, sig)
				return nil
			}}
		})},
		{"kills the main process only", "Kill ends a tree of orphaned sessions that ignore SIGTERM", everyHandle(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, kill: func(ctx context.Context) error {
				_ = h.Signal(ctx, syscall.SIGKILL)
				return nil
			}}
		})},
		{"counts no leftovers", "Release kills and counts what outlived the main process", everyHandle(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, release: func(ctx context.Context) (service.Remains, error) {
				r, err := h.Release(ctx)
				r.Leftovers = 0
				return r, err
			}}
		})},
		{"forgets to release", "after Release nothing of the incarnation exists", everyHandle(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, release: func(context.Context) (service.Remains, error) { return service.Remains{}, nil }}
		})},
		{"takes a SIGKILL for want of memory", "an end by SIGKILL from outside is not told as want of memory", everyHandle(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, release: func(ctx context.Context) (service.Remains, error) {
				r, err := h.Release(ctx)
				if h.Exit().Signal == syscall.SIGKILL {
					r.OOM = service.OOMOwn
				}
				return r, err
			}}
		})},
		{"sets no limit and says it did", "a limit changes while the service runs, and the others stay", everyHandle(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, limit: func(ctx context.Context, _ service.Limits) (service.Applied, error) { return h.Limits(ctx) }}
		})},
		{"knows no use", "what is used is above nothing, and its source is told", everyHandle(func(h backends.Handle) backends.Handle {
			return handle{Handle: h, usage: func(context.Context) (service.Usage, error) {
				return service.Usage{Source: "procfs"}, nil
			}}
		})},
		{"adopts whatever has the number", "what was never launched is not adopted, and a bystander with its number lives", credulous},
		{"forgets at an adoption what was requested", "limits that were set before the adoption still hold after it, and are told as before", func(b *fake.Backend) backends.Backend {
			return culprit{Backend: b, adopt: func(ctx context.Context, ref service.Ref, _ service.Launch) (backends.Handle, error) {
				return b.Adopt(ctx, ref, service.Launch{})
			}}
		}},
		{"believes nothing is ever left", "what runs is listed by a fresh agent, as it was launched", func(b *fake.Backend) backends.Backend {
			return culprit{Backend: b, leftovers: func(context.Context, []service.Name) ([]service.Ref, error) { return nil, nil }}
		}},
		{"takes whoever is there for the main process", "what outlived its main process is listed too, and none of it is taken for that", func(b *fake.Backend) backends.Backend {
			return culprit{Backend: b, leftovers: func(ctx context.Context, known []service.Name) ([]service.Ref, error) {
				refs, err := b.Leftovers(ctx, known)
				for i, ref := range refs {
					for _, p := range b.Processes() {
						if p.Service == ref.Name && p.Incarnation == ref.Incarnation {
							refs[i].PID = p.PID
							break
						}
					}
				}
				return refs, err
			}}
		}},
		{"forgets who the main process is", "what is listed can be adopted with nothing else known of it, as if there were a record", func(b *fake.Backend) backends.Backend {
			return culprit{Backend: b, leftovers: func(ctx context.Context, known []service.Name) ([]service.Ref, error) {
				refs, err := b.Leftovers(ctx, known)
				for i := range refs {
					refs[i].PID, refs[i].StartTicks, refs[i].BootID = 0, 0, ""
				}
				return refs, err
			}}
		}},
		{"takes its services along", "closing the backend does not touch a single service", func(b *fake.Backend) backends.Backend {
			return culprit{Backend: b, close: func() error {
				b.Reboot()
				return nil
			}}
		}},
	}
}

func earlyGate(b *fake.Backend) backends.Backend {
	return culprit{Backend: b, launch: func(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
		h, err := b.Launch(ctx, l, backends.Birth{Identify: func(service.Ref) error { return nil }})
		if err != nil {
			return nil, err
		}
		if err := birth.Identify(h.Ref()); err != nil {
			_, _ = h.Release(ctx)
			return nil, &service.Error{Op: "start", Service: l.Name, Err: err}
		}
		return h, nil
	}}
}

func recordless(b *fake.Backend) backends.Backend {
	return culprit{Backend: b, launch: func(ctx context.Context, l service.Launch, birth backends.Birth) (backends.Handle, error) {
		var failure error
		h, err := b.Launch(ctx, l, backends.Birth{Identify: func(ref service.Ref) error {
			failure = birth.Identify(ref)
			return nil
		}})
		if failure != nil {
			return nil, &service.Error{Op: "start", Service: l.Name, Err: failure}
		}
		return h, err
	}}
}

func inventive(b *fake.Backend) backends.Backend {
	return culprit{Backend: b, adopt: func(ctx context.Context, ref service.Ref, l service.Launch) (backends.Handle, error) {
		h, err := b.Adopt(ctx, ref, l)
		if err != nil {
			return nil, err
		}
		return handle{Handle: h, exit: func() service.Exit { return service.Exit{} }}, nil
	}}
}

// credulous adopts by the number alone.
func credulous(b *fake.Backend) backends.Backend {
	return culprit{Backend: b, adopt: func(ctx context.Context, ref service.Ref, l service.Launch) (backends.Handle, error) {
		h, err := b.Adopt(ctx, ref, l)
		if !errors.Is(err, backends.ErrGone) {
			return h, err
		}
		for _, p := range b.Processes() {
			if p.PID == ref.PID {
				found := ref
				found.Name, found.Incarnation = p.Service, p.Incarnation
				return b.Adopt(ctx, found, l)
			}
		}
		return nil, backends.ErrGone
	}}
}

const crimeVariable = "GLADSHEIM_BACKENDTEST_CRIME"

// TestOnTrial is the suite with a backend that commits the crime which the
// environment names. Without one it is innocent, and has to be acquitted.
func TestOnTrial(t *testing.T) {
	commit := func(b *fake.Backend) backends.Backend { return b }
	if name := os.Getenv(crimeVariable); name != "" {
		real := realCrimes()
		if i := slices.IndexFunc(real, func(c realCrime) bool { return c.name == name }); i >= 0 {
			tryWithProcesses(t, real[i])
			return
		}
		all := crimes()
		i := slices.IndexFunc(all, func(c crime) bool { return c.name == name })
		require.GreaterOrEqual(t, i, 0, "there is no crime %q", name)
		commit = all[i].commit
	}
	host := fake.NewHost()
	backendtest.Run(t, backendtest.Subject{
		New: func(*testing.T) backends.Backend {
			return commit(fake.New(fake.Config{Host: host, Program: fake.Workload}))
		},
		Offers: fake.Everything(),
		Alive:  func(token string) int { return alive(host, token) },
	})
}

func alive(host *fake.Host, token string) int {
	n := 0
	for _, p := range host.Processes() {
		if strings.Contains(p.Command, token) {
			n++
		}
	}
	return n
}

// TestConvictions lets the suite try backends that are wrong in one way each:
// laws that nobody can break prove nothing.
func TestConvictions(t *testing.T) {
	for _, c := range crimes() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			convict(t, c.law, crimeVariable+"="+c.name)
		})
	}
}

// convict executes this test binary for one law of the suite and wants that law
// to find the accused guilty.
func convict(t *testing.T, law string, env ...string) {
	t.Helper()
	law = strings.ReplaceAll(law, " ", "_")
	read, write, err := os.Pipe()
	require.NoError(t, err)
	p, err := os.StartProcess("/proc/self/exe", []string{
		os.Args[0], "-test.v", "-test.run=^TestOnTrial$/^(together|alone)$/^" + regexp.QuoteMeta(law) + "$",
	}, &os.ProcAttr{Env: append(os.Environ(), env...), Files: []*os.File{nil, write, write}})
	require.NoError(t, write.Close())
	require.NoError(t, err)
	said, err := io.ReadAll(read)
	require.NoError(t, err)
	_, err = p.Wait()
	require.NoError(t, err)
	require.Regexp(t, "--- FAIL: TestOnTrial/(together|alone)/"+regexp.QuoteMeta(law), string(said), "it was acquitted")
}
