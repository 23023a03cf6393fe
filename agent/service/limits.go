package service

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Resource is one thing that can be limited.
type Resource uint8

// The resources, each with the kernel file that carries it
// (Documentation/admin-guide/cgroup-v2.rst; NoFile: setrlimit(2)). Records hold them
// by their numbers: a new one comes last.
const (
	MemoryMax      Resource = iota // memory.max: above it the kernel kills
	MemoryHigh                     // memory.high: above it the kernel throttles and reclaims
	MemorySwapMax                  // memory.swap.max
	CPUMax                         // cpu.max, in microseconds of CPU time per second
	CPUWeight                      // cpu.weight
	PidsMax                        // tasks, pids.max
	IOWeight                       // io.weight
	NoFile                         // open files per process, RLIMIT_NOFILE
	MemoryLow                      // memory.low: below it memory is taken only when there is none elsewhere
	MemoryMin                      // memory.min: below it memory is never taken
	CPUIdle                        // cpu.idle: gets what nobody else wants
	CPUBurst                       // cpu.max.burst, in microseconds per second: what may be saved up of CPUMax
	CPUSetCPUs                     // cpuset.cpus: the CPUs it may run on
	CPUSetMems                     // cpuset.mems: the memory nodes it may have memory of
	MemoryZswapMax                 // memory.zswap.max: of compressed swap in memory
	OOMGroup                       // memory.oom.group: want of memory ends all of it
	IOMax                          // io.max: how fast each disk may be used
	Rlimits                        // of each process, setrlimit(2), but for NoFile
	HugetlbMax                     // hugetlb.SIZE.max and its reservations: memory in huge pages of each size
	IODeviceWeight                 // io.weight of some disks
	NumResources
)

// Unit is what a quota counts.
type Unit uint8

// The units.
const (
	Plain      Unit = iota // a number
	Bytes                  // of memory
	Percent                // of one core; the quota holds microseconds per second
	YesNo                  // 1 or 0
	List                   // no amount: numbers of CPUs or nodes, in Quota.Text
	Devices                // no amount: a DeviceLimit for each of several disks, in Quota.Text
	PerProcess             // no amount: several Rlimit, in Quota.Text
	PerPage                // no amount: HugePages for each of several sizes, in Quota.Text
	Weights                // no amount: a DeviceWeight for each of several disks, in Quota.Text
)

// IsNumber tells whether quotas of this unit hold a Value, not a Text.
func (u Unit) IsNumber() bool { return u < List }

// resources is what is to be known of each resource. Low and high are the values that
// a quota may have besides Unlimited.
var resources = [NumResources]struct {
	name      string
	unit      Unit
	low, high uint64
	unlimited bool
}{
	MemoryMax:     {"memory_max", Bytes, 1 << 20, 1 << 50, true},
	MemoryHigh:    {"memory_high", Bytes, 1 << 20, 1 << 50, true},
	MemorySwapMax: {"memory_swap_max", Bytes, 0, 1 << 50, true},
	// The kernel refuses quotas below 1 ms in a period of 100 ms.
	CPUMax:    {"cpu_percent", Percent, UsecPerPercent, 100 * UsecPerPercent * 8192, true},
	CPUWeight: {"cpu_weight", Plain, 1, 10000, false},
	PidsMax:   {"pids_max", Plain, 1, 4 << 20, true},
	IOWeight:  {"io_weight", Plain, 1, 10000, false},
	NoFile:    {"nofile", Plain, 16, 1 << 30, false},
	MemoryLow: {"memory_low", Bytes, 0, 1 << 50, true},
	MemoryMin: {"memory_min", Bytes, 0, 1 << 50, true},
	CPUIdle:   {"cpu_idle", YesNo, 0, 1, false},
	CPUBurst:  {"cpu_burst_percent", Percent, 0, 100 * UsecPerPercent * 8192, false},
	// Of lists the values are those of the numbers in it.
	CPUSetCPUs:     {"cpuset_cpus", List, 0, maxNumber, true},
	CPUSetMems:     {"cpuset_mems", List, 0, maxNumber, true},
	MemoryZswapMax: {"memory_zswap_max", Bytes, 0, 1 << 50, true},
	OOMGroup:       {"oom_group", YesNo, 0, 1, false},
	IOMax:          {"io_max", Devices, 0, 1 << 50, true},
	Rlimits:        {"rlimits", PerProcess, 0, 1 << 60, true},
	HugetlbMax:     {"hugetlb_max", PerPage, 0, 1 << 50, true},
	IODeviceWeight: {"io_device_weight", Weights, 1, 10000, true},
}

func (r Resource) String() string { return resources[r].name }

// Unit is what a quota of r counts.
func (r Resource) Unit() Unit { return resources[r].unit }

// ParseResource finds a resource by the name it has in a definition.
func ParseResource(name string) (Resource, error) {
	var known []string
	for r, row := range resources {
		if name == row.name {
			return Resource(r), nil
		}
		known = append(known, row.name)
	}
	return 0, fmt.Errorf("%q is not a limit; limits are %s", name, strings.Join(known, ", "))
}

// Unlimited is the value of a Quota that lifts the limit ("max" in cgroup files).
const Unlimited = math.MaxUint64

// UsecPerPercent turns percent of one core into CPUMax's unit.
const UsecPerPercent = 10_000

// Quota is an optional amount of one resource. Its zero value says nothing:
// absent is not zero.
type Quota struct {
	Value uint64 // in the unit of its Resource, or Unlimited
	Text  string `json:",omitempty"` // instead of a Value, where the unit is no number; in its one canonical form
	Set   bool
}

// Of is a Quota of n.
func Of(n uint64) Quota { return Quota{Value: n, Set: true} }

// OfText is a Quota that is no number. Resource.Parse makes the canonical text.
func OfText(text string) Quota { return Quota{Text: text, Set: true} }

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

// Instead is what of l is not what was asked for, or, where nobody asked, what limits
// nothing.
func (l Limits) Instead(asked Limits) (instead Limits) {
	for i, q := range l {
		want := asked[i]
		if !want.Set {
			want = Resource(i).Free()
		}
		if q.Set && q != want {
			instead[i] = q
		}
	}
	return instead
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

// Conflicts tells which limits of l can not be had together, each with its field in a
// definition.
func (l Limits) Conflicts() (faults []Fault) {
	add := func(r Resource, format string, args ...any) {
		faults = append(faults, Fault{Field: "limits." + r.String(), Message: fmt.Sprintf(format, args...)})
	}
	for _, r := range []Resource{MemoryMin, MemoryLow, MemoryHigh} {
		if q, top := l[r], l[MemoryMax]; q.Set && top.Set && q.Value != Unlimited && q.Value > top.Value {
			add(r, "%s is above %s, %s", r.Format(q), MemoryMax, MemoryMax.Format(top))
		}
	}
	burst, quota := l[CPUBurst], l[CPUMax]
	switch {
	case !burst.Set || burst.Value == 0 || !quota.Set:
	case quota.Value == Unlimited:
		add(CPUBurst, "has nothing to save from: it wants a %s", CPUMax)
	case burst.Value > quota.Value:
		add(CPUBurst, "%s is above %s, %s", CPUBurst.Format(burst), CPUMax, CPUMax.Format(quota))
	}
	if l[CPUIdle] == Of(1) && l[CPUWeight].Set {
		add(CPUIdle, "leaves no place for a %s", CPUWeight)
	}
	return faults
}

// Range is the least and the most that a limit of r may be, and whether it may
// be Unlimited as well.
func (r Resource) Range() (low, high uint64, unlimited bool) {
	row := resources[r]
	return row.low, row.high, row.unlimited
}

// Free is the quota of r that limits nothing; unset where each limits something, as
// weights do.
func (r Resource) Free() Quota {
	switch _, _, unlimited := r.Range(); {
	case r == CPUBurst, r == MemoryLow, r == MemoryMin:
		return Of(0)
	case unlimited:
		return Of(Unlimited)
	}
	return Quota{}
}

// Check tells why q can not be a limit of r, or nil. An unset quota is fine.
func (r Resource) Check(q Quota) error {
	low, high, unlimited := r.Range()
	switch {
	case !q.Set:
		return nil
	case q == Of(Unlimited) && unlimited:
		return nil
	case q.Value == Unlimited:
		return fmt.Errorf("%s can not be unlimited", r)
	case !r.Unit().IsNumber():
		return r.checkText(q)
	case q.Text != "":
		return fmt.Errorf("%s is %.40q; it wants a number", r, q.Text)
	case q.Value < low || q.Value > high:
		return fmt.Errorf("%s is %s; the range is %s to %s", r, r.Format(q), r.Format(Of(low)), r.Format(Of(high)))
	}
	return nil
}

// checkText tells why q, which is no number, can not be a limit of r.
func (r Resource) checkText(q Quota) error {
	back, err := r.parse(q.Text)
	if err == nil && back != q {
		err = fmt.Errorf("%s is %.100q; in canonical form that is %.100q", r, q.Text, back.Text)
	}
	return err
}

// Parse reads a quota as a person writes it: bytes as an integer or with KiB,
// MiB, GiB, TiB; percent as a decimal; true or false; lists as ParseNumbers,
// ParseDevices, ParseRlimits, ParseHugePages and ParseDeviceWeights do; else an integer;
// "max" for Unlimited.
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
	switch r.Unit() {
	case Bytes:
		n, err := ParseSize(text)
		if err != nil {
			return Quota{}, fmt.Errorf("%s: %w", r, err)
		}
		return Of(n), nil
	case Percent:
		percent, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
		if err != nil {
			return Quota{}, fmt.Errorf("%s: %q is not a number of percent of one core", r, text)
		}
		return r.OfPercent(percent)
	case YesNo:
		switch text {
		case "true":
			return Of(1), nil
		case "false":
			return Of(0), nil
		}
		return Quota{}, fmt.Errorf("%s: %q is neither true nor false", r, text)
	case List, Devices, PerProcess, PerPage, Weights:
		q, err := parseText(r.Unit(), text)
		if err == nil && q.Value == Unlimited {
			err = errNothing
		}
		if err != nil {
			return Quota{}, fmt.Errorf("%s: %w", r, err)
		}
		return q, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return Quota{}, fmt.Errorf("%s: %q is not a whole number", r, text)
	}
	return Of(n), nil
}

// OfPercent turns percent of one core into a quota of r, whose unit is Percent;
// positive infinity is Unlimited. It refuses NaN and what is below 0, or 0 where that
// is no quota.
func (r Resource) OfPercent(percent float64) (Quota, error) {
	low, _, _ := r.Range()
	switch {
	case math.IsNaN(percent) || percent < 0 || percent == 0 && low > 0:
		return Quota{}, fmt.Errorf("%s is %v; it must be above 0", r, percent)
	case math.IsInf(percent, 1):
		return Of(Unlimited), nil
	case percent > 1e9:
		return Quota{}, fmt.Errorf("%s is %v; that is more than any machine has", r, percent)
	}
	return Of(uint64(math.Round(percent * UsecPerPercent))), nil
}

// Percent is a quota of a resource that is counted so as percent of one core, +Inf when unlimited.
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
	case !r.Unit().IsNumber():
		return q.Text
	case r.Unit() == Percent:
		return strconv.FormatFloat(q.Percent(), 'f', -1, 64) + "%"
	case r.Unit() == Bytes:
		return FormatSize(q.Value)
	case r.Unit() == YesNo:
		return strconv.FormatBool(q.Value != 0)
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

// Warnings are the levels at which use of a resource is worth a word. A level of 0
// says nothing.
type Warnings struct {
	Memory   float64               // percent of MemoryMax
	CPU      float64               // percent of CPUMax
	Pressure [NumPressures]float64 // percent of the time that some task is held up
}

// levels lists all of them.
func (w *Warnings) levels() []*float64 {
	all := []*float64{&w.Memory, &w.CPU}
	for i := range w.Pressure {
		all = append(all, &w.Pressure[i])
	}
	return all
}

// Over returns w with the gaps filled from base.
func (w Warnings) Over(base Warnings) Warnings {
	for i, level := range w.levels() {
		if *level == 0 {
			*level = *base.levels()[i]
		}
	}
	return w
}

// Without is w without what is set in other.
func (w Warnings) Without(other Warnings) Warnings {
	for i, level := range w.levels() {
		if *other.levels()[i] != 0 {
			*level = 0
		}
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
	Freeze     bool               // the whole service can be frozen and thawed

	// Why a limit is not enforced: what is missing, where, and what to do. "" where the
	// backend as such does not.
	Why [NumResources]string
}

// Explain names resources that e does not enforce, each with why.
func (e Enforcement) Explain(missing []Resource) string {
	var out []string
	for i, r := range missing {
		why := e.Why[r]
		if why != "" && (i+1 == len(missing) || e.Why[missing[i+1]] != why) {
			why = " (" + why + ")"
		} else {
			why = ""
		}
		out = append(out, r.String()+why)
	}
	return strings.Join(out, ", ")
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
