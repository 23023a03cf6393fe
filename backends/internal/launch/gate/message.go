package gate

import "syscall"

// ShimSocket is the name of a shim's socket. It holds the version of the messages
// below, so that an agent of another one finds no shim it can not talk to.
const ShimSocket = "shim.4.sock"

// What an agent says to a shim, one message each, and gets for it.
const (
	// SayFork, with what becomes of its output, whose it is, and the descriptors of the
	// program, of the gate's 0, of its 1 and 2, of its socket; unless that is PourNot,
	// of the other end of the pipe that its 1 and 2 are, and of the log; and of a cgroup
	// directory if it is to be born in one. The answer is a SayChild.
	SayFork = 'F'
	// SayHeard, with whose it is: its end, past or to come, need not be kept.
	SayHeard = 'H'
	// SayAsk: the answer is a SayAll, behind the ends of all that is no more.
	SayAsk = 'Q'
)

// What a shim says.
const (
	// SayChild: a Child and the errno of its fork, with its pidfd if that is 0.
	SayChild = 'C'
	// SayEnd: an End of a child. It is kept until it was heard of.
	SayEnd = 'E'
	// SayOrphan: an End of a process that was given to the shim when its own
	// parent ended; it is told once, to the agent that listens, and not kept.
	SayOrphan = 'O'
	// SayLiving: Children that live. It comes first on every connection, as often as
	// it takes to name them all, and again when another agent has had one made.
	SayLiving = 'L'
	// SayTrouble: a Trouble, when it begins and when it is over. On every connection
	// those that last come before the SayAll, and those that were over when nobody heard.
	SayTrouble = 'T'
	// SayStopped: Children that a signal keeps from running (SIGSTOP and its like). On
	// every connection those of the moment come before the SayAll, were it none: an
	// agent knows by it that this shim tells.
	SayStopped = 'S'
	// SayGoesOn: Children that were stopped and run again.
	SayGoesOn = 'G'
	// SayAll: all ends that are kept have been told. It comes behind those on every
	// connection, and as the answer to a SayAsk.
	SayAll = 'A'
)

// ForkedFiles is how many descriptors come with SayFork when no cgroup and no pipe
// does, PipeFiles how many more with a pipe.
const (
	ForkedFiles = 4
	PipeFiles   = 2
)

// Child names a child of the shim for ever: a number is given away again,
// but not in the same tick.
type Child struct {
	PID        int32
	StartTicks uint64 // since boot
}

// End is how a process ended.
type End struct {
	Child
	Status  syscall.WaitStatus
	CPU     uint64 // nanoseconds, its own and of descendants it had waited for
	Brand   uint64 // its hard RLIMIT_RTTIME
	At      int64  // wall clock, nanoseconds since 1970
	Session int32
	Gate    bool   // it was a gate still: its program did not run
	Whose   string // what the agent said when it was forked
}

// MaxWhose is the most bytes that say whose a child is.
const MaxWhose = 128

// MaxSaid is the longest message of a shim.
const MaxSaid = 4096

const (
	childSize = 12
	endSize   = 1 + childSize + 4 + 8 + 8 + 8 + 4 + 1 // and whose
)

// Encode writes an end as a message of kind say.
func (e End) Encode(say byte) []byte {
	b := putChild([]byte{say}, e.Child)
	b = putUint32(b, uint32(e.Status))
	b = putUint64(b, e.CPU)
	b = putUint64(putUint64(b, e.Brand), uint64(e.At))
	b = append(putUint32(b, uint32(e.Session)), 0)
	if e.Gate {
		b[len(b)-1] = 1
	}
	return append(b, e.Whose...)
}

// DecodeEnd reads what Encode wrote; false for anything else.
func DecodeEnd(b []byte) (End, bool) {
	if len(b) < endSize || len(b) > endSize+MaxWhose {
		return End{}, false
	}
	r := reader{b: b[1:]}
	e := End{Child: r.child(), Status: syscall.WaitStatus(r.uint32()), CPU: r.uint64(), Brand: r.uint64(), At: int64(r.uint64())}
	e.Session = int32(r.uint32())
	e.Gate, e.Whose = r.b[0] != 0, string(r.b[1:])
	return e, true
}

// EncodeChild writes a child, and the errno of its fork, as a message of kind say.
func EncodeChild(say byte, c Child, errno syscall.Errno) []byte {
	return putUint32(putChild([]byte{say}, c), uint32(errno))
}

// DecodeChild reads what EncodeChild wrote; false for anything else.
func DecodeChild(b []byte) (Child, syscall.Errno, bool) {
	if len(b) != 1+childSize+4 {
		return Child{}, 0, false
	}
	r := reader{b: b[1:]}
	return r.child(), syscall.Errno(r.uint32()), true
}

// DecodeChildren reads the children of a SayLiving, SayStopped or SayGoesOn.
func DecodeChildren(b []byte) []Child {
	var children []Child
	for r := (reader{b: b[1:]}); len(r.b) >= childSize; {
		children = append(children, r.child())
	}
	return children
}

func putChild(b []byte, c Child) []byte { return putUint64(putUint32(b, uint32(c.PID)), c.StartTicks) }

func (r *reader) child() Child { return Child{PID: int32(r.uint32()), StartTicks: r.uint64()} }

// Trouble is that a log can not be written.
type Trouble struct {
	Whose string
	Block bool          // the service waits; else its output is dropped
	Errno syscall.Errno // why
	Bytes uint64        // dropped so far
	Lines uint64        // line ends among them
	Began int64         // wall clock, nanoseconds since 1970
	Ended int64         // likewise; 0 while it lasts
}

const troubleSize = 1 + 1 + 4 + 8 + 8 + 8 + 8 // and whose

// Encode writes a trouble as a SayTrouble.
func (t Trouble) Encode() []byte {
	b := []byte{SayTrouble, 0}
	if t.Block {
		b[1] = 1
	}
	b = putUint64(putUint64(putUint32(b, uint32(t.Errno)), t.Bytes), t.Lines)
	return append(putUint64(putUint64(b, uint64(t.Began)), uint64(t.Ended)), t.Whose...)
}

// DecodeTrouble reads what Encode wrote; false for anything else.
func DecodeTrouble(b []byte) (Trouble, bool) {
	if len(b) < troubleSize || len(b) > troubleSize+MaxWhose {
		return Trouble{}, false
	}
	r := reader{b: b[2:]}
	t := Trouble{Block: b[1] != 0, Errno: syscall.Errno(r.uint32()), Bytes: r.uint64(), Lines: r.uint64(), Began: int64(r.uint64()), Ended: int64(r.uint64())}
	t.Whose = string(r.b)
	return t, true
}
