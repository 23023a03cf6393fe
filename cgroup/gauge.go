package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Gauge reads the counters of a group that are looked at often, through files that
// stay open. It is for one goroutine at a time.
type Gauge struct {
	group  Group
	memory *os.File // memory.current; nil where the kernel does not count it
	cpu    *os.File // cpu.stat
	stat   *os.File // memory.stat; nil until somebody asks for the cache
	text   [4096]byte
}

// Gauge opens the files. The error is fs.ErrNotExist when the group is not there.
func (g Group) Gauge() (*Gauge, error) {
	d, err := g.open()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	x := &Gauge{group: g}
	if x.cpu, err = d.openFile("cpu.stat", unix.O_RDONLY); err != nil {
		return nil, err
	}
	if x.memory, err = d.openFile("memory.current", unix.O_RDONLY); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, errors.Join(err, x.Close())
	}
	return x, nil
}

// Read reads them.
func (x *Gauge) Read() (service.Gauge, error) {
	var out service.Gauge
	if x.memory != nil {
		text, err := x.read(x.memory)
		if err != nil {
			return out, err
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 64)
		if err != nil {
			return out, fmt.Errorf("%s holds %q: %w", x.memory.Name(), text, err)
		}
		out.Memory = service.Of(n)
	}
	text, err := x.read(x.cpu)
	if err != nil {
		return out, err
	}
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte{'\n'})
		key, value, _ := bytes.Cut(line, []byte{' '})
		var into *service.Quota
		var used service.Quota
		switch string(key) {
		case "usage_usec":
			into = &used
		case "nr_periods":
			into = &out.Periods
		case "nr_throttled":
			into = &out.ThrottledPeriods
		default:
			continue
		}
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			return out, fmt.Errorf("%s holds %q: %w", x.cpu.Name(), line, err)
		}
		*into = service.Of(n)
		if used.Set {
			out.CPUTime = time.Duration(used.Value) * time.Microsecond
		}
	}
	return out, nil
}

// Cache is inactive_file of memory.stat.
func (x *Gauge) Cache() (service.Quota, error) {
	if x.memory == nil {
		return service.Quota{}, nil
	}
	if x.stat == nil {
		d, err := x.group.open()
		if err != nil {
			return service.Quota{}, err
		}
		defer d.Close()
		if x.stat, err = d.openFile("memory.stat", unix.O_RDONLY); err != nil {
			return service.Quota{}, err
		}
	}
	text, err := x.read(x.stat)
	if err != nil {
		return service.Quota{}, err
	}
	_, rest, found := bytes.Cut(text, []byte("\ninactive_file "))
	value, _, whole := bytes.Cut(rest, []byte{'\n'})
	if !found || !whole {
		return service.Quota{}, fmt.Errorf("%s tells no inactive_file", x.stat.Name())
	}
	n, err := strconv.ParseUint(string(value), 10, 64)
	if err != nil {
		return service.Quota{}, fmt.Errorf("%s holds %q: %w", x.stat.Name(), value, err)
	}
	return service.Of(n), nil
}

// read reads a file from its beginning; what we want of ours is within the room for it.
func (x *Gauge) read(f *os.File) ([]byte, error) {
	n, err := f.ReadAt(x.text[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return x.text[:n], nil
}

// Close closes the files.
func (x *Gauge) Close() error {
	err := x.cpu.Close()
	for _, f := range []*os.File{x.memory, x.stat} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// Tally reads what the kernel has counted of the group and all below it: how often a
// limit was run into (memory.events, pids.events). What it does not count is unset.
func (g Group) Tally() (service.Tally, error) {
	d, err := g.open()
	if err != nil {
		return service.Tally{}, err
	}
	defer d.Close()
	memory, err := readEvents(d, "memory.events")
	if err != nil {
		return service.Tally{}, err
	}
	pids, err := readEvents(d, "pids.events")
	return service.Tally{
		MemoryHigh: memory["high"], MemoryMax: memory["max"], OOM: memory["oom"], OOMKills: memory["oom_kill"], PidsMax: pids["max"],
	}, err
}

// Pressure opens a pressure file with a trigger: it signals EPOLLPRI whenever some
// tasks of the group, or all of them if full is wanted, were held up for share of the
// window, at most once a window (Documentation/accounting/psi.rst). The error is
// fs.ErrNotExist where the kernel measures no pressure.
func (g Group) Pressure(r service.PressureOf, full bool, share, window time.Duration) (*os.File, error) {
	d, err := g.open()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	f, err := d.openFile(r.String()+".pressure", unix.O_RDWR) // with O_NONBLOCK the poller of Go would take the events
	if err != nil {
		return nil, err
	}
	kind := "some"
	if full {
		kind = "full"
	}
	text := fmt.Sprintf("%s %d %d", kind, share.Microseconds(), window.Microseconds())
	err = d.tree.call("write", f.Name(), func() error { _, err := f.WriteString(text); return bare(err) })
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%q: %w", text, err)
	}
	return f, nil
}
