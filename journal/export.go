package journal

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
)

// entry is what is of interest in an entry of the journal.
type entry struct {
	cursor  string
	at      time.Time // when journald took it
	boot    string
	message []byte // valid until the next entry is read
	stream  string // _STREAM_ID
	broken  string // _LINE_BREAK: how the line ended if not by a newline
	pid     string
	dropped uint64 // messages that journald has not kept
}

// fields are those that journalctl is asked for; it adds the cursor and the time.
const fields = "MESSAGE,_STREAM_ID,_LINE_BREAK,_PID,_BOOT_ID,N_DROPPED"

// maxField bounds a field in bytes: journald takes none that is longer by default.
const maxField = 768 << 20

// markOf tells whether e is the line that a stream began with: nobody but the
// process that made the stream can have written it, then.
func (e *entry) markOf(s service.Stream) bool {
	return s.Mark != "" && string(e.message) == s.Mark && e.pid == strconv.Itoa(s.PID) && e.boot == plain(s.BootID) && e.stream != ""
}

// plain is an id without the dashes that the kernel writes into it.
func plain(id string) string { return string(bytes.ReplaceAll([]byte(id), []byte("-"), nil)) }

// reader reads entries in the Journal Export Format
// (https://systemd.io/JOURNAL_EXPORT_FORMATS).
type reader struct {
	from *bufio.Reader
	e    entry
	any  bool
}

// next reads one entry; io.EOF where there is none any more.
func (r *reader) next() (*entry, error) {
	r.e = entry{message: r.e.message[:0]}
	for any := false; ; any = true {
		name, err := r.from.ReadBytes('\n')
		switch {
		case errors.Is(err, io.EOF) && len(name) == 0 && !any:
			return nil, io.EOF
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		}
		name = name[:len(name)-1]
		if len(name) == 0 {
			if any {
				return &r.e, nil
			}
			continue
		}
		if key, value, text := bytes.Cut(name, []byte("=")); text {
			r.take(string(key), value)
		} else if err := r.binary(string(name)); err != nil {
			return nil, err
		}
	}
}

// binary reads the value of a field that is no text: its length, then the bytes
// and a newline.
func (r *reader) binary(key string) error {
	var length uint64
	if err := binary.Read(r.from, binary.LittleEndian, &length); err != nil {
		return fmt.Errorf("read the length of %s: %w", key, err)
	}
	if length > maxField {
		return fmt.Errorf("the field %.64q has %d bytes", key, length)
	}
	var value bytes.Buffer // grows as bytes come, whatever the length says
	if _, err := io.CopyN(&value, r.from, int64(length)); err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	if end, err := r.from.ReadByte(); err != nil || end != '\n' {
		return fmt.Errorf("the field %.64q does not end where it should (%v)", key, err)
	}
	r.take(key, value.Bytes())
	return nil
}

func (r *reader) take(key string, value []byte) {
	switch e := &r.e; key {
	case "__CURSOR":
		e.cursor = string(value)
	case "__REALTIME_TIMESTAMP":
		if us, err := strconv.ParseInt(string(value), 10, 64); err == nil {
			e.at = time.UnixMicro(us)
		}
	case "_BOOT_ID":
		e.boot = string(value)
	case "MESSAGE":
		e.message = append(e.message[:0], value...)
	case "_STREAM_ID":
		e.stream = string(value)
	case "_LINE_BREAK":
		e.broken = string(value)
	case "_PID":
		e.pid = string(value)
	case "N_DROPPED":
		e.dropped, _ = strconv.ParseUint(string(value), 10, 64)
	}
}
