package auditor

import "context"

// Expectation is what a test knows of a host. The zero value expects nothing
// besides what holds of every host.
type Expectation struct {
	Since      Baseline   // taken before the fault
	Acked      []Ack      // what callers were told that it was done since then, in that order
	Bystanders []Instance // processes that are none of ours, and are to live on where they lived
	Bare       []string   // services that open nothing and set no variable by themselves
	Quiet      bool       // no call is under way
}

// Baseline is what ran at one moment.
type Baseline struct {
	Instances []Instance
	Restarts  map[string]Restarts // by service
}

// Instance is a process that is told from every other, also from a later one of
// the same number.
type Instance struct {
	Service string // of whose main process it is; "" of a bystander
	PID     int
	Start   uint64 // in ticks since boot
	Cgroup  string // where it lived, "" on a host without
}

// Restarts is how often a service was restarted, as of an incarnation.
type Restarts struct {
	Count       uint32
	Incarnation uint64
}

// Deed is a change that a caller can be told of.
type Deed string

// The deeds.
const (
	Registered   Deed = "register"
	Unregistered Deed = "unregister"
	Started      Deed = "start"
	Stopped      Deed = "stop"
)

// Ack is a deed that the agent has said is done.
type Ack struct {
	Service     string
	Deed        Deed
	Incarnation uint64 // of Started: which runs; of Stopped: which has ended
	Document    []byte // of Registered
}

// Take takes a baseline of what runs now.
func Take(ctx context.Context, h Host) (Baseline, error) {
	v, err := look(ctx, h)
	if err != nil {
		return Baseline{}, err
	}
	b := Baseline{Restarts: map[string]Restarts{}}
	for name, a := range v.actual {
		b.Restarts[name] = Restarts{a.Machine.Restarts, a.Machine.Incarnation}
		if p := v.main(a); p != nil {
			b.Instances = append(b.Instances, p.instance(name))
		}
	}
	return b, nil
}

// Bystander describes a process that is none of ours.
func Bystander(h Host, pid int) (Instance, error) {
	p, err := readProcess(h, pid)
	if err != nil {
		return Instance{}, err
	}
	return p.instance(""), nil
}
