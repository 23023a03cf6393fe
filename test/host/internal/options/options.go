// Package options reads the command line of test/host/run.
package options

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/gladsheim/gladsheim/test/host/internal/hosts"
)

// Usage is what -h prints.
const Usage = `usage: test/host/run HOST [flags] -- COMMAND [ARG]...
       test/host/run -list
       test/host/run -build [HOST]...

Boots a fresh machine, runs COMMAND as root in it with this tree's binaries in PATH,
streams its output and returns its exit code. 124: timed out. 125: the host could not be had.

  -copy PATH[:DEST]      put a file or folder into the working directory, or at DEST; repeatable
  -out GUESTPATH:PATH    fetch a file or folder after the command, also when it failed; repeatable
  -env K=V               set a variable for the command; repeatable
  -timeout D             give up after D (default 10m)
  -bin DIR               the binaries to put in PATH (default: bin/ of this tree)
  -stdin                 give the command this standard input (default: none)
  -tty                   run the command on a terminal: test/host/run systemd -tty -- bash
  -disk FILE             keep what the machine writes on this disk, made when it is not there: the next run
                         boots the same machine again, as after a power cut (some seconds, not half a second)
  -console               print the machine's console at the end
  -user                  bare only: run as a plain user
  -list                  list the hosts
  -build [HOST]...       make the machines now, so that the first run need not

SIGUSR1 pauses the machine, SIGUSR2 lets it go on. SIGTERM, like any end of this program, cuts its power.
`

// Pair is a path on one side and its place on the other.
type Pair struct{ From, To string }

// Options is one parsed command line.
type Options struct {
	Host    hosts.Host
	Args    []string
	Copy    []Pair // From here To the machine; To may be relative to the working directory
	Out     []Pair // From the machine To here
	Env     []string
	Timeout time.Duration
	Bin     string
	Disk    string
	Stdin   bool
	TTY     bool
	Console bool
	User    bool

	List  bool
	Build []hosts.Host // machines to make and nothing to run
}

// Parse reads the arguments after the program's name. flag.ErrHelp means that help was asked for.
func Parse(args []string) (Options, error) {
	if len(args) == 0 {
		return Options{}, errors.New("no host named")
	}
	switch strings.TrimLeft(args[0], "-") {
	case "h", "help":
		return Options{}, flag.ErrHelp
	case "list":
		return Options{List: true}, nil
	case "build":
		build, err := machines(args[1:])
		return Options{Build: build}, err
	}
	return parseRun(args[0], args[1:])
}

func parseRun(name string, args []string) (Options, error) {
	o := Options{Timeout: 10 * time.Minute}
	var found bool
	if o.Host, found = hosts.Find(name); !found {
		return o, unknown(name)
	}
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Func("copy", "", func(s string) error { return o.addCopy(s) })
	flags.Func("out", "", func(s string) error { return o.addOut(s) })
	flags.Func("env", "", func(s string) error { return o.addEnv(s) })
	flags.DurationVar(&o.Timeout, "timeout", o.Timeout, "")
	flags.StringVar(&o.Bin, "bin", "", "")
	flags.StringVar(&o.Disk, "disk", "", "")
	flags.BoolVar(&o.Stdin, "stdin", false, "")
	flags.BoolVar(&o.TTY, "tty", false, "")
	flags.BoolVar(&o.Console, "console", false, "")
	flags.BoolVar(&o.User, "user", false, "")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	// The -- is not optional: without it a forgotten flag value would become the command.
	if before := args[:len(args)-flags.NArg()]; len(before) == 0 || before[len(before)-1] != "--" {
		return o, errors.New("no -- before the command")
	}
	o.Args = flags.Args()

	switch {
	case len(o.Args) == 0:
		return o, errors.New("no command after --")
	case o.Timeout <= 0:
		return o, errors.New("-timeout must be more than nothing")
	case o.Disk != "" && o.Host.Bare():
		return o, errors.New("-disk is for machines; bare keeps what it is told anyway")
	case o.User && !o.Host.Bare():
		return o, errors.New("-user is for bare; in a machine use runuser or setpriv")
	}
	return o, nil
}

func (o *Options) addCopy(s string) error {
	from, to := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		from, to = s[:i], s[i+1:]
	}
	if from == "" {
		return errors.New("want PATH or PATH:DEST")
	}
	base, err := filepath.Abs(from) // the base name of "." is the folder's
	if err != nil {
		return err
	}
	if to == "" || strings.HasSuffix(to, "/") {
		to = path.Join(to, filepath.Base(base))
	}
	o.Copy = append(o.Copy, Pair{from, to})
	return nil
}

func (o *Options) addOut(s string) error {
	from, to, found := strings.Cut(s, ":")
	if !found || from == "" || to == "" {
		return errors.New("want GUESTPATH:PATH")
	}
	o.Out = append(o.Out, Pair{from, to})
	return nil
}

func (o *Options) addEnv(s string) error {
	if strings.IndexByte(s, '=') < 1 {
		return errors.New("want K=V")
	}
	o.Env = append(o.Env, s)
	return nil
}

func machines(names []string) ([]hosts.Host, error) {
	var list []hosts.Host
	if len(names) == 0 {
		names = hosts.Names()
	}
	for _, name := range names {
		host, found := hosts.Find(name)
		if !found {
			return nil, unknown(name)
		}
		if !host.Bare() {
			list = append(list, host)
		}
	}
	return list, nil
}

func unknown(name string) error {
	return fmt.Errorf("no host %q; there are %s", name, strings.Join(hosts.Names(), ", "))
}
