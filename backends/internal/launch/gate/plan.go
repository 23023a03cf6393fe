package gate

import "errors"

// Plan is everything a gate has to know.
type Plan struct {
	Pause bool // sleep for ever instead of executing a program
	Shim  bool // be the parent of others instead; see shim

	Path      string // absolute
	Args      []string
	Env       []string // NAME=value
	Directory string   // absolute

	Umask       uint32
	OOMScoreAdj int32
	Nice        int32
	Policy      uint32   // of the scheduler
	Priority    uint32   // with a real-time policy
	NoFile      uint64   // RLIMIT_NOFILE soft and hard; 0: soft 1024, hard as it is
	Brand       uint64   // hard RLIMIT_RTTIME, microseconds; the soft one is Self; 0: none
	Beside      bool     // with a brand: the soft one is BesideOf, since it is no main process
	Rlimits     []Rlimit // over what a program has as a rule
	NoNewPrivs  bool
	IgnorePipe  bool // SIGPIPE does not end the program: its output is a socket or a pipe, whose other end may go

	Become   bool // change groups, group and user to those below
	OwnUser  bool // the user is the agent's: groups that may not be set stay as they are
	UID, GID uint32
	Groups   []uint32
}

// Rlimit is a limit of setrlimit(2).
type Rlimit struct {
	Resource   uint32
	Soft, Hard uint64
}

const (
	flagPause = 1 << iota
	flagNoNewPrivs
	flagBecome
	flagOwnUser
	flagShim
	flagIgnorePipe
	flagBeside
)

// maxPlan bounds a plan: far more than execve(2) takes.
const maxPlan = 1 << 30

// ErrTooLong says that a plan is longer than any execve would take.
var ErrTooLong = errors.New("the arguments and the environment are too long")

// Encode writes p as a gate reads it: its length, then fixed fields, then
// lists of strings that end with NUL, of which execve takes none inside.
func (p *Plan) Encode() ([]byte, error) {
	size := 84 + 20*len(p.Rlimits) + 4*len(p.Groups) + len(p.Path) + len(p.Directory)
	for _, list := range [][]string{p.Args, p.Env} {
		for _, s := range list {
			size += len(s) + 1
		}
	}
	if size > maxPlan {
		return nil, ErrTooLong
	}
	b := make([]byte, 4, size)
	var flags uint32
	for i, set := range [...]bool{p.Pause, p.NoNewPrivs, p.Become, p.OwnUser, p.Shim, p.IgnorePipe, p.Beside} {
		if set {
			flags |= 1 << i
		}
	}
	b = putUint32(b, flags)
	b = putUint32(b, p.Umask)
	b = putUint32(b, uint32(p.OOMScoreAdj))
	b = putUint32(b, uint32(p.Nice))
	b = putUint32(b, p.Policy)
	b = putUint32(b, p.Priority)
	b = putUint64(b, p.NoFile)
	b = putUint64(b, p.Brand)
	b = putUint32(b, p.UID)
	b = putUint32(b, p.GID)
	b = putUint32(b, uint32(len(p.Groups)))
	for _, g := range p.Groups {
		b = putUint32(b, g)
	}
	b = putUint32(b, uint32(len(p.Rlimits)))
	for _, l := range p.Rlimits {
		b = putUint64(putUint64(putUint32(b, l.Resource), l.Soft), l.Hard)
	}
	b = putStrings(b, []string{p.Path, p.Directory})
	b = putStrings(b, p.Args)
	b = putStrings(b, p.Env)
	copy(b, putUint32(nil, uint32(len(b)-4)))
	return b, nil
}

func putUint32(b []byte, n uint32) []byte {
	return append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
}

func putUint64(b []byte, n uint64) []byte {
	return putUint32(putUint32(b, uint32(n)), uint32(n>>32))
}

func putStrings(b []byte, list []string) []byte {
	b = putUint32(b, uint32(len(list)))
	for _, s := range list {
		b = append(b, s...)
		b = append(b, 0)
	}
	return b
}

func getUint32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// decode reads what Encode wrote, without the length. It tells false for
// anything else.
func decode(b []byte) (Plan, bool) {
	r := reader{b: b}
	flags := r.uint32()
	p := Plan{
		Pause:       flags&flagPause != 0,
		NoNewPrivs:  flags&flagNoNewPrivs != 0,
		Become:      flags&flagBecome != 0,
		OwnUser:     flags&flagOwnUser != 0,
		Shim:        flags&flagShim != 0,
		IgnorePipe:  flags&flagIgnorePipe != 0,
		Beside:      flags&flagBeside != 0,
		Umask:       r.uint32(),
		OOMScoreAdj: int32(r.uint32()),
		Nice:        int32(r.uint32()),
		Policy:      r.uint32(),
		Priority:    r.uint32(),
		NoFile:      r.uint64(),
		Brand:       r.uint64(),
		UID:         r.uint32(),
		GID:         r.uint32(),
	}
	for range r.count(4) {
		p.Groups = append(p.Groups, r.uint32())
	}
	for range r.count(20) {
		p.Rlimits = append(p.Rlimits, Rlimit{r.uint32(), r.uint64(), r.uint64()})
	}
	paths := r.strings()
	p.Args, p.Env = r.strings(), r.strings()
	if r.failed || len(paths) != 2 || len(r.b) != 0 {
		return Plan{}, false
	}
	p.Path, p.Directory = paths[0], paths[1]
	return p, true
}

type reader struct {
	b      []byte
	failed bool
}

func (r *reader) uint32() uint32 {
	if len(r.b) < 4 {
		r.failed, r.b = true, nil
		return 0
	}
	n := getUint32(r.b)
	r.b = r.b[4:]
	return n
}

func (r *reader) uint64() uint64 {
	low := r.uint32()
	return uint64(low) | uint64(r.uint32())<<32
}

// count reads how many entries follow, each of which takes size bytes at
// least.
func (r *reader) count(size int) int {
	n := int(r.uint32())
	if n < 0 || n > len(r.b)/size {
		r.failed = true
		return 0
	}
	return n
}

func (r *reader) strings() []string {
	var list []string
	for range r.count(1) {
		end := 0
		for end < len(r.b) && r.b[end] != 0 {
			end++
		}
		if end == len(r.b) {
			r.failed, r.b = true, nil
			return nil
		}
		list = append(list, string(r.b[:end]))
		r.b = r.b[end+1:]
	}
	return list
}
