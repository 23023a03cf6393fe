package auditor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// view is one look at a host.
type view struct {
	host      Host
	processes map[int]*process
	groups    []string // cgroups that bear a name of ours, below the root
	wanted    map[string]wanted
	actual    map[string]actual
	exits     map[string][]exitRecord
	answers   *answers // nil: the agent was not asked, or did not answer
	log       []logLine
	names     map[uint32]string // of services, by what the exec backend brands them with

	faults    []Finding // met while looking
	unchecked []string
}

// process is one process of the host.
type process struct {
	pid, parent int
	threads     int
	start       uint64
	state       byte
	cgroup      string // "" on a host without
	brand       uint64 // RLIMIT_RTTIME, 0 if it is none of the exec backend's
}

func (p *process) instance(service string) Instance {
	return Instance{Service: service, PID: p.pid, Start: p.start, Cgroup: p.cgroup}
}

// alive tells whether p can still do anything; a zombie can if it is only its first
// thread that has ended.
func (p *process) alive() bool { return p.state != 'X' && (p.state != 'Z' || p.threads > 1) }

func look(ctx context.Context, h Host) (*view, error) {
	v := &view{host: h}
	if err := v.readRecords(); err != nil {
		return nil, err
	}
	if err := v.ask(ctx); err != nil {
		v.unchecked = append(v.unchecked, fmt.Sprintf("what the agent says, and the agent itself (I10): %v", err))
	}
	if err := v.readLog(); err != nil {
		v.unchecked = append(v.unchecked, fmt.Sprintf("what the agent logged (I7): %v", err))
	}
	if err := v.readProcesses(); err != nil {
		return nil, err
	}
	if err := v.readGroups(); err != nil {
		return nil, err
	}
	return v, v.nameBrands()
}

func (v *view) readProcesses() error {
	entries, err := os.ReadDir(v.host.Proc)
	if err != nil {
		return err
	}
	v.processes = map[int]*process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, err := readProcess(v.host, pid)
		switch {
		case err == nil:
			v.processes[pid] = p
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH): // it has ended meanwhile
		default:
			return err
		}
	}
	return nil
}

func readProcess(h Host, pid int) (*process, error) {
	dir := filepath.Join(h.Proc, strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return nil, err
	}
	// The name stands in parentheses and may hold any (proc_pid_stat(5)).
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return nil, fmt.Errorf("cannot read %s/stat: %q", dir, stat)
	}
	p := &process{pid: pid, state: fields[0][0]}
	if p.parent, err = strconv.Atoi(string(fields[1])); err != nil {
		return nil, fmt.Errorf("cannot read %s/stat: %w", dir, err)
	}
	if p.threads, err = strconv.Atoi(string(fields[17])); err != nil {
		return nil, fmt.Errorf("cannot read %s/stat: %w", dir, err)
	}
	if p.start, err = strconv.ParseUint(string(fields[19]), 10, 64); err != nil {
		return nil, fmt.Errorf("cannot read %s/stat: %w", dir, err)
	}
	if h.Cgroups != "" {
		if p.cgroup, err = readCgroup(dir); err != nil {
			return nil, err
		}
	}
	p.brand, err = readBrand(dir)
	return p, err
}

func readCgroup(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSuffix(strings.TrimSuffix(path, "\n"), " (deleted)"), nil
		}
	}
	return "", fmt.Errorf("cannot read %s/cgroup: no line of cgroup v2 in %q", dir, text)
}

// readBrand reads by what the exec backend knows its processes: the hard limit of
// real-time scheduling, with bit 62 set and bit 63 not.
func readBrand(dir string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "limits"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "Max realtime timeout")
		if fields := strings.Fields(rest); ok && len(fields) >= 2 {
			if n, err := strconv.ParseUint(fields[1], 10, 64); err == nil && n>>62 == 1 {
				return n, nil
			}
		}
	}
	return 0, nil
}

// nameBrands finds out how the exec backend brands each service that is known.
func (v *view) nameBrands() error {
	info, err := os.Stat(v.host.State)
	if err != nil {
		return err
	}
	v.names = map[uint32]string{}
	for _, name := range v.known() {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s\x00%s", info.Sys().(*syscall.Stat_t).Uid, v.host.State, name))
		v.names[binary.BigEndian.Uint32(sum[:])>>2] = name
	}
	return nil
}

// known are the services of which the agent or its records know.
func (v *view) known() []string {
	names := map[string]bool{}
	for name := range v.wanted {
		names[name] = true
	}
	for name := range v.actual {
		names[name] = true
	}
	for name := range v.exits {
		names[name] = true
	}
	if v.answers != nil {
		for name := range v.answers.services {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// ourRoots are where services have their cgroups, with systemd and without.
var ourRoots = []string{"/gladsheim.slice", "/gladsheim"}

// within tells whether a cgroup is another or lies below it.
func within(group, root string) bool { return group == root || strings.HasPrefix(group, root+"/") }

func belowOurs(group string) bool {
	return slices.ContainsFunc(ourRoots, func(root string) bool { return within(group, root) })
}

// notServices are the cgroups below our roots that hold processes of the agent's
// own: the one that keeps the delegated scope, the shim's, and in a container the
// one for all that was there before.
var notServices = []string{"/gladsheim.slice/gladsheim-cgroups.scope/pause", "/gladsheim/supervisor", "/gladsheim/shim"}

// instance names an incarnation and where it is.
type instance struct {
	service     string
	incarnation uint64
	place       string
}

var (
	groupName = regexp.MustCompile(`^svc-(.+)-([0-9a-f]{8,16})$`)
	scopeName = regexp.MustCompile(`^gladsheim-(.+)-([0-9a-f]{8,16})\.scope$`)
	// Beside the scope, which is gone then, run programs that follow the end of a service.
	cellName = regexp.MustCompile(`^gladsheim-(.+)\\x2d([0-9a-f]{8,16})\.slice$`)
)

const pen = "gladsheim-run-"

// ofGroup tells which incarnation a cgroup, or one above it, is of.
func ofGroup(group string) (instance, bool) {
	at, above := "", ""
	for part := range strings.SplitSeq(strings.TrimPrefix(group, "/"), "/") {
		at += "/" + part
		match := groupName.FindStringSubmatch(part)
		if match == nil {
			match = scopeName.FindStringSubmatch(part)
		}
		if match == nil && strings.HasPrefix(part, pen) {
			if match = cellName.FindStringSubmatch(above); match != nil {
				match[1] = strings.ReplaceAll(match[1], `\x2d`, "-")
			}
		}
		above = part
		if match == nil {
			continue
		}
		if incarnation, err := strconv.ParseUint(match[2], 16, 64); err == nil {
			return instance{match[1], incarnation, at}, true
		}
	}
	return instance{}, false
}

// of tells which incarnation a process is of. Incarnations of the exec backend
// are known by their lower 32 bits.
func (v *view) of(p *process) (instance, bool) {
	if i, ok := ofGroup(p.cgroup); ok {
		return i, true
	}
	if name, ok := v.names[uint32(p.brand>>32)&^(1<<30)]; ok && p.brand != 0 {
		return instance{name, uint64(uint32(p.brand)), fmt.Sprintf("brand %#x", p.brand)}, true
	}
	return instance{}, false
}

// readGroups finds the cgroups that bear a name of ours, wherever they lie.
func (v *view) readGroups() error {
	if v.host.Cgroups == "" {
		return nil
	}
	return filepath.WalkDir(v.host.Cgroups, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV): // it went away while we looked
			return nil
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		}
		group := strings.TrimPrefix(path, v.host.Cgroups)
		if i, ok := ofGroup(group); ok {
			if i.place == group {
				v.groups = append(v.groups, group)
			}
			return fs.SkipDir
		}
		return nil
	})
}

// main is the main process of a record, nil if it does not live.
func (v *view) main(a actual) *process {
	p := v.processes[a.Ref.PID]
	if p == nil || p.start != a.Ref.StartTicks || !p.alive() {
		return nil
	}
	return p
}
