package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/agent/service"
)

// reading reads many small files of one group into one buffer, and keeps the
// first error. A file that is missing counts nothing; so does one whose counting
// is turned off.
type reading struct {
	dir    *dir
	buffer []byte
	err    error
}

func newReading(d *dir) *reading { return &reading{dir: d, buffer: make([]byte, 4<<10)} }

// text is what the file holds, until the next is read; nil when it is missing.
func (r *reading) text(name string) []byte {
	if r.err != nil {
		return nil
	}
	text, err := r.read(name)
	switch {
	// EOPNOTSUPP: of a pressure file when cgroup.pressure is 0.
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case err != nil:
		r.err = err
		return nil
	}
	return text
}

func (r *reading) read(name string) ([]byte, error) {
	full := filepath.Join(r.dir.Name(), name)
	fd, err := r.dir.openFD(name, full, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for n := 0; ; {
		if n == len(r.buffer) {
			r.buffer = append(r.buffer, make([]byte, len(r.buffer))...)
		}
		var more int
		err := r.dir.tree.call("read", full, func() (err error) { more, err = unix.Read(fd, r.buffer[n:]); return err })
		if err != nil {
			return nil, err
		}
		if more == 0 {
			return r.buffer[:n], nil
		}
		n += more
	}
}

// fail keeps what was wrong with a file.
func (r *reading) fail(name string, text []byte, err error) {
	if r.err == nil {
		r.err = fmt.Errorf("%s holds %.80q: %w", filepath.Join(r.dir.Name(), name), text, err)
	}
}

// number reads a file that holds one number.
func (r *reading) number(name string) service.Quota {
	text := bytes.TrimSpace(r.text(name))
	if len(text) == 0 {
		return service.Quota{}
	}
	n, err := count(text)
	if err != nil {
		r.fail(name, text, err)
		return service.Quota{}
	}
	return service.Of(n)
}

// field is a key of a file, and where its number goes.
type field struct {
	key string
	to  *service.Quota
}

// keys reads the numbers of some keys from a file of lines "key number".
func (r *reading) keys(name string, fields ...field) {
	left := len(fields)
	for text := r.text(name); len(text) > 0 && left > 0; {
		var line []byte
		line, text, _ = bytes.Cut(text, newline)
		key, value, _ := bytes.Cut(line, blank)
		for _, f := range fields {
			if string(key) != f.key {
				continue
			}
			n, err := count(value)
			if err != nil {
				r.fail(name, line, err)
				return
			}
			*f.to = service.Of(n)
			left--
			break
		}
	}
}

// devices reads lines "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6". One
// without counters is of a device that was used once and is of no interest now.
func (r *reading) devices(name string) (sum service.IO, devices []service.DeviceIO) {
	text := r.text(name)
	if text == nil {
		return sum, nil
	}
	zero := service.Of(0)
	sum = service.IO{ReadBytes: zero, WriteBytes: zero, Reads: zero, Writes: zero}
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, newline)
		device, rest, _ := bytes.Cut(line, blank)
		var one service.IO
		fields := [...]struct {
			key      string
			one, all *service.Quota
		}{
			{"rbytes", &one.ReadBytes, &sum.ReadBytes}, {"wbytes", &one.WriteBytes, &sum.WriteBytes},
			{"rios", &one.Reads, &sum.Reads}, {"wios", &one.Writes, &sum.Writes},
		}
		for len(rest) > 0 {
			var pair []byte
			pair, rest, _ = bytes.Cut(rest, blank)
			key, value, _ := bytes.Cut(pair, equals)
			for _, f := range fields {
				if string(key) != f.key {
					continue
				}
				n, err := count(value)
				if err != nil {
					r.fail(name, line, err)
					return service.IO{}, nil
				}
				*f.one = service.Of(n)
				f.all.Value += n
			}
		}
		if one != (service.IO{}) {
			devices = append(devices, service.DeviceIO{Device: string(device), IO: one})
		}
	}
	return sum, devices
}

// pressure reads lines "some avg10=0.12 avg60=0.34 avg300=0.56 total=789".
func (r *reading) pressure(name string) (p service.Pressure) {
	for text := r.text(name); len(text) > 0; {
		var line []byte
		line, text, _ = bytes.Cut(text, newline)
		which, rest, _ := bytes.Cut(line, blank)
		var s *service.Stall
		switch string(which) {
		case "some":
			s = &p.Some
		case "full":
			s = &p.Full
		default:
			continue
		}
		if err := parseStall(rest, s); err != nil {
			r.fail(name, line, err)
			return service.Pressure{}
		}
	}
	return p
}

func parseStall(fields []byte, s *service.Stall) (err error) {
	for len(fields) > 0 {
		var pair []byte
		pair, fields, _ = bytes.Cut(fields, blank)
		key, value, _ := bytes.Cut(pair, equals)
		switch string(key) {
		case "avg10":
			s.Avg10, err = strconv.ParseFloat(string(value), 64)
		case "avg60":
			s.Avg60, err = strconv.ParseFloat(string(value), 64)
		case "total":
			var usec uint64
			usec, err = count(value)
			s.Total, s.Set = time.Duration(usec)*time.Microsecond, true
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var newline, blank, equals = []byte("\n"), []byte(" "), []byte("=")

func count(text []byte) (uint64, error) { return strconv.ParseUint(string(text), 10, 64) }

// errGone says that a group was removed while it was read.
var errGone = fmt.Errorf("the group is gone: %w", fs.ErrNotExist)
