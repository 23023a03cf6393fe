package cgroup

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// limitFiles are the files that carry the limits. NoFile has none: it belongs
// to each process (setrlimit(2)). Of those that are alone a group's own counts: they
// are relative to its siblings, or to another limit of its own.
var limitFiles = [service.NumResources]struct {
	name, controller string
	alone            bool
}{
	service.MemoryMax:     {"memory.max", "memory", false},
	service.MemoryHigh:    {"memory.high", "memory", false},
	service.MemoryLow:     {"memory.low", "memory", false},
	service.MemoryMin:     {"memory.min", "memory", false},
	service.MemorySwapMax: {"memory.swap.max", "memory", false},
	service.CPUMax:        {"cpu.max", "cpu", false},
	service.CPUBurst:      {cpuBurst, "cpu", true},
	service.CPUWeight:     {"cpu.weight", "cpu", true},
	service.CPUIdle:       {"cpu.idle", "cpu", true},
	service.PidsMax:       {"pids.max", "pids", false},
	service.IOWeight:      {"io.weight", "io", true},

	service.CPUSetCPUs:     {"cpuset.cpus", "cpuset", true},
	service.CPUSetMems:     {"cpuset.mems", "cpuset", true},
	service.MemoryZswapMax: {"memory.zswap.max", "memory", false},
	service.OOMGroup:       {oomGroup, "memory", true},
	service.IOMax:          {"io.max", "io", false},
	service.IODeviceWeight: {"io.weight", "io", true},
	service.HugetlbMax:     {hugetlbFiles, "hugetlb", false},
}

// inTurn are the limits that have files, in the order in which they are written: what
// was idle has no weight yet.
var inTurn = func() []service.Resource {
	order := []service.Resource{service.CPUIdle}
	for i, f := range limitFiles {
		if r := service.Resource(i); f.name != "" && r != service.CPUIdle {
			order = append(order, r)
		}
	}
	return order
}()

const (
	cpuBurst = "cpu.max.burst"
	oomGroup = "memory.oom.group"
)

// Wanted are the controllers that counters need, and limits that many set.
var Wanted = []string{"cpu", "io", "memory", "pids"}

// OnDemand are those that cost something, and limits need that few set: a group has
// them once one beside it has asked for such a limit.
var OnDemand = []string{"cpuset", "hugetlb"}

// Demanded are the controllers of OnDemand that l needs.
func Demanded(l service.Limits) (controllers []string) {
	for r, q := range l {
		c := limitFiles[r].controller
		if q.Set && q.Value != service.Unlimited && slices.Contains(OnDemand, c) && !slices.Contains(controllers, c) {
			controllers = append(controllers, c)
		}
	}
	return controllers
}

const (
	cpuPeriod   = 100_000 // microseconds; the kernel's default
	cpuMinQuota = 1_000   // microseconds; the kernel refuses less
)

// Controller is the controller that keeps limits of r, "" if none does.
func Controller(r service.Resource) string { return limitFiles[r].controller }

// Enforceable tells which limits the kernel keeps for groups such as g: those
// whose file is there. Of the root, which has no such files, nothing is known.
func (g Group) Enforceable() ([service.NumResources]bool, error) {
	var can [service.NumResources]bool
	d, err := g.open()
	if err != nil {
		return can, err
	}
	defer d.Close()
	for r, f := range limitFiles {
		if f.name == "" {
			continue
		}
		if service.Resource(r).Unit() == service.PerPage {
			can[r], err = d.hasHugePages()
		} else {
			can[r], err = d.has(f.name)
		}
		if err != nil {
			return can, err
		}
	}
	return can, nil
}

// Apply writes the limits that are set in l, and reads each back: a value that
// the kernel did not keep, but for its rounding to whole pages, is an error that
// names the file and both values. NoFile is not a matter of cgroups and skipped.
// A limit whose file is missing is an error, unless it is Unlimited, which asks
// for nothing. Lowering memory.max below what is in use makes the kernel reclaim
// and then kill.
func (g Group) Apply(l service.Limits) error {
	d, err := g.open()
	if err != nil {
		return err
	}
	defer d.Close()
	if l[service.CPUMax].Set && l[service.CPUBurst].Set {
		// Neither is refused for the sake of what the other was.
		if err := d.write(cpuBurst, "0"); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	for _, r := range inTurn {
		q := l[r]
		if !q.Set {
			continue
		}
		err := applyOne(d, r, q)
		if q.Value == service.Unlimited && g.hasNo(err) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hasNo tells whether err says that g has no such file, or has it no more: systemd takes
// controllers away that nobody needs, while we look.
func (g Group) hasNo(err error) bool {
	if errors.Is(err, unix.ENODEV) {
		there, _ := g.Exists()
		return there
	}
	return errors.Is(err, unix.ENOENT)
}

func applyOne(d *dir, r service.Resource, q service.Quota) error {
	switch r.Unit() {
	case service.Devices:
		return setDevices(d, r, q)
	case service.Weights:
		return setWeights(d, q)
	case service.PerPage:
		return setHugePages(d, q)
	}
	text, want := encode(r, q)
	file := limitFiles[r].name
	err := d.write(file, text)
	if r.Unit() == service.List && q.Value == service.Unlimited && errors.Is(err, unix.ENOSPC) {
		return d.fill(r)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	got, err := readLimit(d, r)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s/%s holds %s after %q was written", d.Name(), file, r.Format(got), text)
	}
	return checkEffective(d, r, q)
}

// encode is what to write for q, and the quota that the kernel will make of it.
func encode(r service.Resource, q service.Quota) (text string, want service.Quota) {
	switch {
	case r.Unit() == service.List && q.Value == service.Unlimited:
		return "\n", q // else nothing would be written
	case r.Unit() == service.List:
		return q.Text, q
	case q.Value == service.Unlimited && r == service.CPUMax:
		return fmt.Sprintf("max %d", cpuPeriod), q
	case q.Value == service.Unlimited:
		return "max", q
	}
	text, value := encodeNumber(r, q)
	return text, service.Of(value)
}

func encodeNumber(r service.Resource, q service.Quota) (text string, want uint64) {
	number := strconv.FormatUint(q.Value, 10)
	switch {
	case r.Unit() == service.Bytes:
		page := uint64(os.Getpagesize())
		return number, q.Value / page * page
	case r == service.CPUMax:
		quota := max(q.Value/10, cpuMinQuota)
		return fmt.Sprintf("%d %d", quota, cpuPeriod), quota * 10
	case r == service.CPUBurst:
		return strconv.FormatUint(q.Value/10, 10), q.Value / 10 * 10
	case r == service.IOWeight:
		return "default " + number, q.Value
	}
	return number, q.Value
}

// Limit reads one limit of g alone; unset where the kernel has no such file.
func (g Group) Limit(r service.Resource) (service.Quota, error) {
	d, err := g.open()
	if err != nil {
		return service.Quota{}, err
	}
	defer d.Close()
	q, err := readLimit(d, r)
	if errors.Is(err, unix.ENOENT) {
		return service.Quota{}, nil
	}
	return q, err
}

// Limits reads the limits back and finds what holds in effect: the smallest of
// the group's own and every ancestor's, with the ancestor that sets it: of memory.low
// and memory.min as well, for a group is protected by no more than what is above it.
// Weights are relative to the siblings, so theirs is simply the group's own. A limit
// whose file is missing here is not enforced; its Applied is unset.
func (g Group) Limits(requested service.Limits) (service.Applied, error) {
	var a service.Applied
	for r, q := range requested {
		a[r].Requested = q
	}
	for level, at := len(g.lineage())-1, g; level >= 0; level, at = level-1, at.Parent() {
		if err := at.addLimits(&a, at == g); err != nil {
			return service.Applied{}, err
		}
	}
	for _, lack := range g.tree.Lacks(requested) {
		if lack.Resource != service.IOMax || lost(a[service.IOMax].Applied, requested[service.IOMax]) {
			a[lack.Resource].Enforced = false
		}
	}
	for _, r := range []service.Resource{service.IOMax, service.IODeviceWeight} {
		if asked := requested[r]; asked.Text != "" {
			a[r].Applied, a[r].Effective = named(r, a[r].Applied, asked), named(r, a[r].Effective, asked)
		}
	}
	if a[service.CPUIdle].Applied == service.Of(1) { // the file of the weight says 0, which is none
		weight := &a[service.CPUWeight]
		weight.Applied, weight.Effective = service.Quota{}, service.Quota{}
	}
	return a, nil
}

// addLimits adds what one level says to a.
func (g Group) addLimits(a *service.Applied, own bool) error {
	d, err := g.open()
	if err != nil {
		return err
	}
	defer d.Close()
	for i, f := range limitFiles {
		r := service.Resource(i)
		if f.name == "" || !own && f.alone {
			continue
		}
		q, err := readLimit(d, r)
		if g.hasNo(err) {
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case own && r.Unit() == service.List:
			a[r].Applied, a[r].Enforced = q, true
			a[r].Effective, a[r].SetBy, err = g.effective(r, q)
			if g.hasNo(err) {
				a[r].Applied, a[r].Enforced = service.Quota{}, false
				continue
			}
			if err != nil {
				return err
			}
		case own:
			a[r].Applied, a[r].Effective, a[r].Enforced = q, q, true
		case r.Unit() == service.Devices || r.Unit() == service.PerPage:
			if both, differs := tighter(r, a[r].Effective, q); differs {
				a[r].Effective, a[r].SetBy = both, g.path
			}
		case !a[r].Effective.Set && q == r.Free(): // nobody sets it
			a[r].Effective = q
		case !a[r].Effective.Set || q.Value < a[r].Effective.Value:
			a[r].Effective, a[r].SetBy = q, g.path
		}
	}
	return nil
}

// readLimit reads the file of r in the unit of r.
func readLimit(d *dir, r service.Resource) (service.Quota, error) {
	if r.Unit() == service.PerPage {
		return readHugePages(d)
	}
	file := limitFiles[r].name
	text, err := d.read(file)
	if err != nil {
		return service.Quota{}, err
	}
	q, err := decode(r, text)
	if err == nil && r == service.CPUBurst && q.Value > 0 {
		return readBurst(d, q.Value)
	}
	if err != nil {
		return service.Quota{}, fmt.Errorf("%s/%s holds %q: %w", d.Name(), file, text, err)
	}
	return q, nil
}

// readBurst turns microseconds that may be saved up into microseconds per second, by
// the period in which they are spent, which cpu.max tells.
func readBurst(d *dir, usec uint64) (service.Quota, error) {
	file := limitFiles[service.CPUMax].name
	text, err := d.read(file)
	if err != nil {
		return service.Quota{}, err
	}
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return service.Quota{}, fmt.Errorf("%s/%s holds %q: %w", d.Name(), file, text, errForm)
	}
	rate, err := decodeCPU(strconv.FormatUint(usec, 10), fields[1])
	if err != nil {
		return service.Quota{}, fmt.Errorf("%s/%s holds %q: %w", d.Name(), file, text, err)
	}
	return service.Of(rate), nil
}

var errForm = errors.New("not in the form that the kernel documents")

func decode(r service.Resource, text string) (service.Quota, error) {
	switch r.Unit() {
	case service.List:
		return decodeList(text)
	case service.Devices:
		return decodeDevices(text)
	case service.Weights:
		return decodeWeights(text)
	}
	n, err := decodeNumber(r, text)
	if err != nil {
		return service.Quota{}, err
	}
	return service.Of(n), nil
}

func decodeNumber(r service.Resource, text string) (uint64, error) {
	fields := strings.Fields(text)
	switch {
	case r == service.CPUMax && len(fields) == 2:
		return decodeCPU(fields[0], fields[1])
	case r == service.IOWeight && len(fields) >= 2 && fields[0] == "default":
		return number(fields[1])
	case r != service.CPUMax && r != service.IOWeight && len(fields) == 1:
		return number(fields[0])
	}
	return 0, errForm
}

// decodeCPU turns a quota in a period, both in microseconds, into microseconds
// per second.
func decodeCPU(quotaText, periodText string) (uint64, error) {
	quota, err := number(quotaText)
	if err != nil || quota == service.Unlimited {
		return quota, err
	}
	period, err := number(periodText)
	if err != nil {
		return 0, err
	}
	high, low := bits.Mul64(quota, 1_000_000)
	if high >= period {
		return 0, fmt.Errorf("%d in %d microseconds is no rate", quota, period)
	}
	rate, _ := bits.Div64(high, low, period)
	return rate, nil
}

func number(text string) (uint64, error) {
	if text == "max" {
		return service.Unlimited, nil
	}
	return strconv.ParseUint(text, 10, 64)
}

// File is the name of the file that carries r, "" for none.
func File(r service.Resource) string { return limitFiles[r].name }

// Kept is what the kernel keeps of q; unset where it may keep that in other words.
func Kept(r service.Resource, q service.Quota) service.Quota {
	switch unit := r.Unit(); {
	case unit == service.PerPage:
		return q
	case unit == service.Devices, unit == service.Weights:
		numbered, _ := numbered(r, q)
		return numbered
	case unit == service.List && q.Value == service.Unlimited:
		return service.Quota{}
	}
	_, want := encode(r, q)
	return want
}
