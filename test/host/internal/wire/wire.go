// Package wire is the talk between the runner and a machine it booted: frames over one virtio-serial port.
package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Kind says what a frame carries.
type Kind uint8

// The frames, in the order in which a run sends them.
const (
	Ready    Kind = iota + 1 // machine: booted and waiting for a job; the snapshot is taken here
	Start                    // runner: a Job as JSON
	Stdin                    // runner: bytes for the command
	StdinEnd                 // runner: no more of them
	Resize                   // runner: a Size as JSON, for a command on a terminal
	Stdout                   // machine: bytes of the command
	Stderr                   // machine: bytes of the command
	Files                    // machine: a piece of the tar with what the job wants out
	Done                     // machine: an Outcome as JSON; nothing follows
)

// Where things are inside a machine.
const (
	BinDir  = "/opt/gladsheim/bin" // the tree's binaries
	WorkDir = "/tmp/test"          // the command's working directory
)

// Job is one command to run in a machine.
type Job struct {
	Args    []string
	Env     []string // K=V, over the machine's own
	Clock   int64    // the time now, in nanoseconds since 1970: a restored machine slept for days
	Seed    []byte   // fresh entropy: all restores of a snapshot start with the same
	Payload int64    // bytes of tar on the payload disk
	Out     []string // paths wanted back afterwards
	Stdin   bool     // frames of Stdin follow
	Screen  *Size    // run on a terminal of this size; nil: on pipes
}

// Size is a terminal's.
type Size struct{ Rows, Cols uint16 }

// Outcome is how a job ended.
type Outcome struct {
	Code    int      // the command's exit code, 128+n for a signal
	Missing []string // paths of Job.Out that could not be had, and why
}

const (
	headerSize = 5
	chunk      = 32 << 10 // what the guest's driver takes at once
	maxPayload = 16 << 20 // more than any frame sent: only a broken stream has one
)

// Conn sends and receives frames. Sends may come from several goroutines, receives from one.
type Conn struct {
	r  *bufio.Reader
	mu sync.Mutex
	w  io.Writer
}

// NewConn speaks frames over rw.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{r: bufio.NewReaderSize(rw, 2*chunk), w: rw}
}

// Send sends one frame.
func (c *Conn) Send(kind Kind, payload []byte) error {
	frame := make([]byte, headerSize, headerSize+len(payload))
	frame[0] = byte(kind)
	binary.BigEndian.PutUint32(frame[1:], uint32(len(payload)))
	frame = append(frame, payload...)

	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write(frame)
	return err
}

// SendJSON sends one frame with v as JSON.
func (c *Conn) SendJSON(kind Kind, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Send(kind, payload)
}

// Receive returns the next frame; its payload is the caller's to keep.
func (c *Conn) Receive() (Kind, []byte, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(c.r, header[:]); err != nil {
		return 0, nil, err
	}
	kind, size := Kind(header[0]), binary.BigEndian.Uint32(header[1:])
	if kind < Ready || kind > Done || size > maxPayload {
		return 0, nil, fmt.Errorf("broken frame: kind %d, %d bytes", kind, size)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(c.r, payload); err != nil {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return kind, payload, nil
}

// Writer sends all that is written to it as frames of one kind.
func (c *Conn) Writer(kind Kind) io.Writer { return writer{c, kind} }

type writer struct {
	conn *Conn
	kind Kind
}

func (w writer) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, chunk-headerSize)
		if err := w.conn.Send(w.kind, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}
