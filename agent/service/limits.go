package service

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Resource is one thing that can be limited.
type Resource uint8

// The resources, each with its unit and the kernel file that carries it
// (Documentation/admin-guide/cgroup-v2.rst; NoFile: setrlimit(2)).
const (
	MemoryMax     Resource = iota // bytes, memory.max: above it the kernel kills
	MemoryHigh                    // bytes, memory.high: above it the kernel throttles and reclaims
	MemorySwapMax                 // bytes, memory.swap.max
	CPUMax                        // microseconds of CPU time per second, cpu.max; shown as percent of one core
	CPUWeight                     // 1..10000, cpu.weight
	PidsMax                       // tasks, pids.max
	IOWeight                      // 1..10000, io.weight
	NoFile                        // open files per process, RLIMIT_NOFILE
	NumResources
)

var resourceNames = [NumResources]string{
	"memory_max", "memory_high", "memory_swap_max", "cpu_percent", "cpu_weight", "pids_max", "io_weight", "nofile",
}

func (r Resource) String() string { return resourceNames[r] }

// ParseResource finds a resource by the name it has in a definition.
func ParseResource(name string) (Resource, error) {
	for r, known := range resourceNames {
		if name == known {
			return Resource(r), nil
		}
	}
	return 0, fmt.Errorf("%q is not a limit; limits are %s", name, strings.Join(resourceNames[:], ", "))
}

// Unlimited is the value of a Quota that lifts the limit ("max" in cgroup files).
const Unlimited = math.MaxUint64

// UsecPerPercent turns percent of one core into CPUMax's unit.
const UsecPerPercent = 10_000

// Quota is an optional amount of one resource. Its zero value says nothing:
// absent is not zero.
type Quota struct {
	Value uint64 // in the unit of its Resource, or Unlimited
	Set   bool
}

// Of is a Quota of n.
func Of(n uint64) Quota { return Quota{Value: n, Set: true} }

// Limits holds one Quota for each Resource. The zero value limits nothing.
type Limits [NumResources]Quota

// Over returns l with the gaps filled from base.
func (l Limits) Over(base Limits) Limits {
	for r, q := range l {
		if q.Set {
			base[r] = q
		}
	}
	return base
}

// Without is l without what is set in other.
func (l Limits) Without(other Limits) Limits {
	for r, q := range other {
		if q.Set {
			l[r] = Quota{}
		}
	}
	return l
}

// bounds are the values a quota may have besides Unlimited.
var bounds = [NumResources]struct {
	low, high uint64
	unlimited bool
}{
	MemoryMax:     {1 << 20, 1 << 50, true},
	MemoryHigh:    {1 << 20, 1 << 50, true},
	MemorySwapMax: {0, 1 << 50, true},
	// The kernel refuses quotas below 1 ms in a period of 100 ms.
	CPUMax:    {UsecPerPercent, 100 * UsecPerPercent * 8192, true},
	CPUWeight: {1, 10000, false},
	PidsMax:   {1, 4 << 20, true},
	IOWeight:  {1, 10000, false},
	NoFile:    {16, 1 << 30, false},
}

// Range is the least and the most that a limit of r may be, and whether it may
// be Unlimited as well.
func (r Resource) Range() (low, high uint64, unlimited bool) {
	b := bounds[r]
	return b.low, b.high, b.unlimited
}

// Check tells why q can not be a limit of r, or nil. An unset quota is fine.
func (r Resource) Check(q Quota) error {
	b := bounds[r]
	switch {
	case !q.Set:
		return nil
	case q.Value == Unlimited && b.unlimited:
		return nil
	case q.Value == Unlimited:
		return fmt.Errorf("%s can not be unlimited", r)
	case q.Value < b.low || q.Value > b.high:
		return fmt.Errorf("%s is %s; the range is %s to %s", r, r.Format(q), r.Format(Of(b.low)), r.Format(Of(b.high)))
	}
	return nil
}

// Parse reads a quota as a person writes it: bytes as an integer or with KiB,
// MiB, GiB, TiB; percent as a decimal; else an integer; "max" for Unlimited.
// The result has passed Check.
func (r Resource) Parse(text string) (Quota, error) {
	q, err := r.parse(text)
	if err != nil {
		return Quota{}, err
	}
	return q, r.Check(q)
}

func (r Resource) parse(text string) (Quota, error) {
	if text == "max" {
		return Of(Unlimited), nil
	}
	switch r {
	case MemoryMax, MemoryHigh, MemorySwapMax:
		n, err := ParseSize(text)
		if err != nil {
			return Quota{}, fmt.Errorf("%s: %w", r, err)
		}
		return Of(n), nil
	case CPUMax:
		percent, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
		if err != nil {
			return Quota{}, fmt.Errorf("%s: %q is not a number of percent of one core", r, text)
		}
		q, err := CPUQuota(percent)
		return q, err
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return Quota{}, fmt.Errorf("%s: %q is not a whole number", r, text)
	}
	return Of(n), nil
}

// CPUQuota turns percent of one core into a quota of CPUMax; positive infinity
// is Unlimited. It refuses NaN and what is not positive.
func CPUQuota(percent float64) (Quota, error) {
	switch {
	case math.IsNaN(percent) || percent <= 0:
		return Quota{}, fmt.Errorf("%s is %v; it must be above 0", CPUMax, percent)
	case math.IsInf(percent, 1):
		return Of(Unlimited), nil
	case percent > 1e9:
		return Quota{}, fmt.Errorf("%s is %v; that is more than any machine has", CPUMax, percent)
	}
	return Of(uint64(math.Round(percent * UsecPerPercent))), nil
}

// Percent is a quota of CPUMax as percent of one core, +Inf when unlimited.
func (q Quota) Percent() float64 {
	if q.Value == Unlimited {
		return math.Inf(1)
	}
	return float64(q.Value) / UsecPerPercent
}

// Format writes q as Parse reads it, for people: sizes with the largest unit
// that loses nothing.
func (r Resource) Format(q Quota) string {
	switch {
	case !q.Set:
		return "-"
	case q.Value == Unlimited:
		return "max"
	case r == CPUMax:
		return strconv.FormatFloat(q.Percent(), 'f', -1, 64) + "%"
	case r == MemoryMax || r == MemoryHigh || r == MemorySwapMax:
		return FormatSize(q.Value)
	}
	return strconv.FormatUint(q.Value, 10)
}

var sizeUnits = []struct {
	name  string
	shift uint
}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}}

// ParseSize reads bytes: a whole number, alone or followed by KiB, MiB, GiB or
// TiB (powers of 1024). Other units are refused, so that nobody has to guess
// what "MB" means.
func ParseSize(text string) (uint64, error) {
	digits, shift := text, uint(0)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(text, u.name); ok {
			digits, shift = rest, u.shift
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > math.MaxUint64>>shift {
		return 0, fmt.Errorf("%q is not a size; write bytes or a whole number of KiB, MiB, GiB or TiB", text)
	}
	return n << shift, nil
}

// FormatSize writes n with the largest unit that divides it.
func FormatSize(n uint64) string {
	for _, u := range sizeUnits {
		if n != 0 && n%(1<<u.shift) == 0 {
			return strconv.FormatUint(n>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatUint(n, 10)
}

// LimitReport tells what became of one requested limit.
type LimitReport struct {
	Requested Quota  // as asked for
	Applied   Quota  // read back from the kernel after its rounding
	Effective Quota  // the minimum of Applied and every ancestor's
	SetBy     string // the cgroup (relative to the root) whose value is Effective, "" when it is the service's own
	Enforced  bool   // the host enforces it
}

// Applied holds one LimitReport for each Resource; those of resources that
// nobody asked for have Requested unset and still tell what holds.
type Applied [NumResources]LimitReport

// Unenforced lists the requested limits that the host does not enforce.
func (a Applied) Unenforced() []Resource {
	var out []Resource
	for r, rep := range a {
		if rep.Requested.Set && !rep.Enforced {
			out = append(out, Resource(r))
		}
	}
	return out
}

// Warnings are the levels, in percent of a limit, at which use of it is worth a
// word. A level of 0 says nothing.
type Warnings struct {
	Memory float64 // of MemoryMax
	CPU    float64 // of CPUMax
}

// Over returns w with the gaps filled from base.
func (w Warnings) Over(base Warnings) Warnings {
	if w.Memory != 0 {
		base.Memory = w.Memory
	}
	if w.CPU != 0 {
		base.CPU = w.CPU
	}
	return base
}

// Without is w without what is set in other.
func (w Warnings) Without(other Warnings) Warnings {
	if other.Memory != 0 {
		w.Memory = 0
	}
	if other.CPU != 0 {
		w.CPU = 0
	}
	return w
}

// CheckWarning tells why percent can not be a level of Warnings, or nil.
func CheckWarning(percent float64) error {
	if math.IsNaN(percent) || percent < 1 || percent > 100 {
		return fmt.Errorf("is %v; the range is 1 to 100", percent)
	}
	return nil
}

// Enforcement is what a backend can really do on this host, found by asking
// the kernel.
type Enforcement struct {
	Limits     [NumResources]bool // the kernel enforces this limit on the whole service
	OOMVerdict bool               // an OOM kill is told from a SIGKILL, with its level
	KillAll    bool               // no process escapes a kill by forking, by a session of its own or by losing its parent
	BornInside bool               // limits hold before the first instruction, with no move after the fork
}

// Missing lists the limits set in l that e does not enforce. Unlimited asks
// for nothing and is never missing.
func (e Enforcement) Missing(l Limits) []Resource {
	var out []Resource
	for r, q := range l {
		if q.Set && q.Value != Unlimited && !e.Limits[r] {
			out = append(out, Resource(r))
		}
	}
	return out
}
