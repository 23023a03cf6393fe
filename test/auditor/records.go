package auditor

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The agent's records, as far as they matter here.

type wanted struct {
	Document []byte `json:"document"`
	Up       bool   `json:"up"`
}

type actual struct {
	Machine machine `json:"machine"`
	Ref     struct {
		Backend    string `json:"backend"`
		Cgroup     string `json:"cgroup"`
		PID        int    `json:"pid"`
		StartTicks uint64 `json:"start_ticks"`
	} `json:"ref"`
	Spec struct {
		Environment map[string]string
		OOMScoreAdj int
	} `json:"spec"`
	BootID string `json:"boot_id"`
}

type machine struct {
	State       state
	Incarnation uint64
	Restarts    uint32
	Policy      struct{ When int }
}

// state is where a machine stands.
type state int

const (
	stopped  state = 0
	starting state = 3
	running  state = 4
	backoff  state = 7
	crashed  state = 8
	held     state = 9
	waiting  state = 10
)

// alive tells whether processes may exist in the state.
func (s state) alive() bool {
	return s != stopped && s != backoff && s != crashed && s != held && s != waiting
}

// runs tells whether the main process lives, or its end is about to be seen.
func (s state) runs() bool { return s == starting || s == running }

const restartAlways = 1 // of machine.Policy.When

type exitRecord struct {
	Incarnation uint64
	Exit        struct {
		Code    int
		Signal  int
		Unknown string
	}
	Verdict int
	After   *struct{ State state } // what the agent made of it
}

// waits tells whether what follows such an end waits for others, which is no failure.
func (x exitRecord) waits() bool { return x.After != nil && x.After.State == waiting }

// Verdicts of ends that are no failures.
const (
	verdictClean   = 1
	verdictStopped = 2
	noVerdicts     = 15
)

func (v *view) readRecords() error {
	v.wanted, v.actual, v.exits = map[string]wanted{}, map[string]actual{}, map[string][]exitRecord{}
	boot, err := os.ReadFile(filepath.Join(v.host.Proc, "sys/kernel/random/boot_id"))
	if err != nil {
		return err
	}
	err = errors.Join(
		readDir(v, filepath.Join(v.host.State, "services"), v.wanted),
		readDir(v, filepath.Join(v.host.Run, "services"), v.actual),
		readDir(v, filepath.Join(v.host.State, "exits"), v.exits),
	)
	maps.DeleteFunc(v.actual, func(_ string, a actual) bool { return a.BootID != strings.TrimSpace(string(boot)) })
	return err
}

const (
	wasSetAside = "it was damaged and set aside"
	unreadable  = "can not be read"
)

// exitsLost tells whether exit records of a service were damaged and set aside.
// That they are missing is told once, by the file.
func (v *view) exitsLost(service string) bool {
	aside, _ := filepath.Glob(filepath.Join(v.host.State, "exits", service+".json.corrupt-*"))
	return len(aside) > 0
}

// readDir reads the records in dir. What holds none is a fault of the host.
func readDir[T any](v *view, dir string, into map[string]T) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		name, isRecord := strings.CutSuffix(e.Name(), ".json")
		switch {
		case strings.HasPrefix(name, "."): // a write that is under way, or never ended
			continue
		case !isRecord:
			name, _, aside := strings.Cut(e.Name(), ".json.corrupt-")
			if !aside {
				name = ""
			}
			v.faults = append(v.faults, Finding{"I4", name, path + " holds no record; " + wasSetAside + ", or is none of ours"})
			continue
		}
		var body T
		switch err := readRecord(path, &body); {
		case err == nil:
			into[name] = body
		case errors.Is(err, fs.ErrNotExist): // it went away while we looked
		case errors.Is(err, fs.ErrPermission):
			return err
		default:
			v.faults = append(v.faults, Finding{"I4", name, fmt.Sprintf("%s %s: %v", path, unreadable, err)})
		}
	}
	return nil
}

// readRecord reads one file: a body, and the checksum of its format and body.
func readRecord(path string, body any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var r struct {
		Format int             `json:"format"`
		CRC    uint32          `json:"crc32c"`
		Body   json.RawMessage `json:"body"`
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return err
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum([]byte(strconv.Itoa(r.Format)), table), table, r.Body)
	switch {
	case r.Format != 1:
		return fmt.Errorf("its format is %d, and this program knows 1", r.Format)
	case sum != r.CRC:
		return fmt.Errorf("its checksum is %d, and not %d", sum, r.CRC)
	}
	return json.Unmarshal(r.Body, body)
}
