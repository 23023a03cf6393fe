package journal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
)

// errEnough is how a reader of entries says that it wants no more.
var errEnough = errors.New("enough")

// run gives what journalctl finds to each, which must not keep the entry. It ends
// with journalctl, with ctx, or with the first error of each; journalctl does not
// outlive it.
func (j Journal) run(ctx context.Context, args []string, each func(*entry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fixed := []string{"--quiet", "--no-pager", "--all", "--output=export", "--output-fields=" + fields}
	cmd := exec.CommandContext(ctx, j.Program, append(fixed, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	cmd.Dir = "/"
	// Signals for the agent's terminal are not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	said := &head{}
	cmd.Stderr = said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("run %s: %w", j.Program, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", j.Program, err)
	}
	failed := entries(out, each)
	if failed != nil {
		cancel() // kills it
	}
	ended := cmd.Wait()
	switch {
	case errors.Is(failed, errEnough):
		return nil
	case ctx.Err() != nil && failed == nil:
		return ctx.Err()
	case failed == nil && ended != nil:
		return fmt.Errorf("%s: %w: %s", j.Program, ended, bytes.TrimSpace(said.text))
	}
	return failed
}

func entries(from io.Reader, each func(*entry) error) error {
	r := &reader{from: bufio.NewReaderSize(from, 64<<10)}
	for {
		e, err := r.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return nil // it was killed; its end tells
		case err != nil:
			return fmt.Errorf("read what journalctl prints: %w", err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// head keeps the beginning of what is written to it.
type head struct{ text []byte }

func (h *head) Write(p []byte) (int, error) {
	h.text = append(h.text, p[:min(len(p), 1024-len(h.text))]...)
	return len(p), nil
}
