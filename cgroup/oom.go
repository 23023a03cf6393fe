package cgroup

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// OOMCounts are the out-of-memory counters of a group and its ancestors at one
// moment. The zero value is that of a group which was just made and whose
// ancestors never ran out of memory.
type OOMCounts struct {
	levels []oomLevel // the group first, the root last

	// A base of which nothing is known, also not of the ancestors; see Base.
	lost bool
}

// oomLevel is what one group counts.
type oomLevel struct {
	path  string
	kills service.Quota // processes killed in it or below (memory.events: oom_kill)
	below service.Quota // times its limit or one below it was the reason (memory.events: oom)
	local service.Quota // times its own limit was the reason (memory.events.local: oom)
}

// UnknownLevel is the level that OOMSince names when there were kills and the
// kernel does not tell whose limit was the reason.
const UnknownLevel = "unknown"

// OOMCounts reads the counters. A file that is missing counts as unknown, not
// as zero; the root has none.
func (g Group) OOMCounts() (OOMCounts, error) {
	var c OOMCounts
	for at := g; ; at = at.Parent() {
		l, err := at.oomLevel()
		if err != nil {
			return OOMCounts{}, err
		}
		c.levels = append(c.levels, l)
		if at.path == "/" {
			return c, nil
		}
	}
}

// Kills is how many processes of the group the OOM killer took, unset where the
// kernel does not count it.
func (c OOMCounts) Kills() service.Quota {
	if len(c.levels) == 0 {
		return service.Of(0)
	}
	return c.levels[0].kills
}

// Base is what to compare later readings with when the counts from before the
// group's first process are lost. If nothing was killed in it yet, c serves as
// well. Otherwise all that the group has ever counted is compared; its ancestors
// may have counted something else long ago, so none of them is blamed.
func (c OOMCounts) Base() OOMCounts {
	if c.Kills().Value > 0 {
		return OOMCounts{lost: true}
	}
	return c
}

// TellsLevel tells whether the kernel counts kills in this group, and at which
// level memory ran out.
func (c OOMCounts) TellsLevel() bool {
	return len(c.levels) > 0 && c.levels[0].kills.Set && c.levels[0].local.Set
}

func (g Group) oomLevel() (oomLevel, error) {
	l := oomLevel{path: g.path}
	d, err := g.open()
	if err != nil {
		return l, err
	}
	defer d.Close()
	all, err := readEvents(d, "memory.events")
	if err != nil {
		return l, err
	}
	local, err := readEvents(d, "memory.events.local")
	if err != nil {
		return l, err
	}
	l.kills, l.below, l.local = all["oom_kill"], all["oom"], local["oom"]
	return l, nil
}

// readEvents reads a file of lines "key number"; nothing when it is missing.
func readEvents(d *dir, name string) (map[string]service.Quota, error) {
	text, err := d.read(name)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	events := make(map[string]service.Quota)
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s/%s holds %q: %w", d.Name(), name, line, err)
		}
		events[key] = service.Of(n)
	}
	return events, nil
}

// OOMSince tells whether the OOM killer took processes of the group since base
// was read, how many, and at which level memory ran out: level is the path of
// the group whose limit was the reason, "" for the host. Where the kernel does
// not tell the level, or base is lost, it is UnknownLevel and the verdict OOMNone.
// Read it after the exit and before the removal of the group.
func (g Group) OOMSince(base OOMCounts) (verdict service.OOM, level string, kills uint64, err error) {
	now, err := g.OOMCounts()
	if err != nil {
		return service.OOMNone, "", 0, err
	}
	verdict, level, kills = now.since(base)
	return verdict, level, kills, nil
}

// since compares with an earlier reading of the same group.
func (c OOMCounts) since(base OOMCounts) (verdict service.OOM, level string, kills uint64) {
	before := func(i int) oomLevel {
		if i < len(base.levels) {
			return base.levels[i]
		}
		return oomLevel{}
	}
	own := c.levels[0]
	kills = delta(own.kills, before(0).kills)
	switch {
	case kills == 0:
		return service.OOMNone, "", 0
	case delta(own.below, before(0).below) > 0, delta(own.local, before(0).local) > 0:
		return service.OOMOwn, own.path, kills
	}
	for i, l := range c.levels[1:] {
		if !l.local.Set && l.path == "/" {
			break // the root of the host has no limit and no counter
		}
		if !l.local.Set {
			return service.OOMNone, UnknownLevel, kills
		}
		if delta(l.local, before(i+1).local) > 0 {
			if base.lost {
				return service.OOMNone, UnknownLevel, kills
			}
			return service.OOMAncestor, l.path, kills
		}
	}
	return service.OOMHost, "", kills
}

func delta(now, before service.Quota) uint64 {
	if !now.Set || now.Value < before.Value {
		return 0
	}
	return now.Value - before.Value
}
