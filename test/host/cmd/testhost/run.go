package main

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/test/host/internal/machine"
	"github.com/gladsheim/gladsheim/test/host/internal/options"
	"github.com/gladsheim/gladsheim/test/host/internal/pack"
	"github.com/gladsheim/gladsheim/test/host/internal/wire"
)

// runMachine wakes or boots a machine, has it do the job, and ends it.
func runMachine(ctx context.Context, snapshot machine.Snapshot, opts options.Options) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "gladsheim-host-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "payload")
	size, err := writePayload(disk, opts)
	if err != nil {
		return 0, err
	}
	screen, err := openScreen(opts.TTY)
	if err != nil {
		return 0, err
	}
	defer screen.restore()

	var m *machine.Machine
	if opts.Disk != "" {
		m, err = snapshot.Boot(ctx, dir, disk, opts.Disk)
	} else {
		m, err = snapshot.Wake(ctx, dir, disk)
	}
	if err != nil {
		return 0, errors.Join(ctx.Err(), err)
	}
	defer onPause(m)()
	outcome, err := converse(m.Port, opts, screen, size)
	console := m.Console()
	if err != nil {
		err = m.Failed(err)
	} else {
		m.Kill()
	}
	screen.restore()
	if opts.Console {
		fmt.Fprintf(os.Stderr, "--- console:\n%s\n", console)
	}
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err != nil:
		return 0, err
	}
	return outcome.Code, outcome.complaint()
}

// onPause pauses the machine on SIGUSR1 and lets it go on on SIGUSR2, until undone.
func onPause(m *machine.Machine) (undo func()) {
	asked := make(chan os.Signal, 8)
	signal.Notify(asked, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for sig := range asked {
			do := m.Continue
			if sig == unix.SIGUSR1 {
				do = m.Pause
			}
			if err := do(); err != nil {
				say("%v: %v", sig, err)
			}
		}
	}()
	return func() {
		signal.Stop(asked)
		close(asked)
	}
}

// writePayload writes the disk with the binaries and the copies, and returns the size of the tar on it.
func writePayload(disk string, opts options.Options) (int64, error) {
	file, err := os.Create(disk)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	buffered := bufio.NewWriterSize(file, 1<<20)
	w := tar.NewWriter(buffered)
	if opts.Bin != "" {
		if err := pack.Add(w, opts.Bin, wire.BinDir); err != nil {
			return 0, fmt.Errorf("-bin: %w", err)
		}
	}
	for _, pair := range opts.Copy {
		dest := pair.To
		if !path.IsAbs(dest) {
			dest = path.Join(wire.WorkDir, dest)
		}
		if err := pack.Add(w, pair.From, path.Clean(dest)); err != nil {
			return 0, fmt.Errorf("-copy: %w", err)
		}
	}
	if err := errors.Join(w.Close(), buffered.Flush()); err != nil {
		return 0, err
	}
	size, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	if size > machine.PayloadSize {
		return 0, fmt.Errorf("%d MB to copy, more than the %d MB there is room for", size>>20, machine.PayloadSize>>20)
	}
	return size, file.Truncate(machine.PayloadSize)
}

// outcome is how a job ended, seen from here.
type outcome struct {
	wire.Outcome
	files error // of unpacking what came out
}

// complaint is what went wrong with getting files out.
func (o outcome) complaint() error {
	err := o.files
	for _, missing := range o.Missing {
		err = errors.Join(err, errors.New("-out: "+missing))
	}
	return err
}

// converse has the machine do the job, streams its output, and unpacks what comes out.
func converse(port *wire.Conn, opts options.Options, screen *screen, payload int64) (outcome, error) {
	seed := make([]byte, 64)
	if _, err := rand.Read(seed); err != nil {
		return outcome{}, err
	}
	job := wire.Job{
		Args: opts.Args, Env: append(screen.env(), opts.Env...), Clock: time.Now().UnixNano(), Seed: seed, Payload: payload,
		Stdin: opts.Stdin, Screen: screen.size(),
	}
	var dests []string
	for _, pair := range opts.Out {
		job.Out = append(job.Out, pair.From)
		dests = append(dests, pair.To)
	}
	if err := port.SendJSON(wire.Start, job); err != nil {
		return outcome{}, err
	}
	if opts.Stdin || opts.TTY {
		go feed(port)
	}
	screen.onResize(func(size wire.Size) { _ = port.SendJSON(wire.Resize, size) })

	files, into := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := pack.Extract(files, pack.Numbered(dests))
		_, _ = io.Copy(io.Discard, files) // never block the port
		unpacked <- err
	}()
	for {
		kind, data, err := port.Receive()
		if err != nil {
			into.CloseWithError(err)
			return outcome{}, err
		}
		switch kind {
		case wire.Stdout:
			_, _ = os.Stdout.Write(data)
		case wire.Stderr:
			_, _ = os.Stderr.Write(data)
		case wire.Files:
			_, _ = into.Write(data)
		case wire.Done:
			var o outcome
			err := json.Unmarshal(data, &o.Outcome)
			into.Close()
			o.files = <-unpacked
			return o, err
		}
	}
}

// feed sends our standard input until it ends or the run does.
func feed(port *wire.Conn) {
	if _, err := io.Copy(port.Writer(wire.Stdin), os.Stdin); err == nil {
		_ = port.Send(wire.StdinEnd, nil)
	}
}
