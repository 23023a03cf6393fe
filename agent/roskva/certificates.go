package roskva

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/gladsheim/gladsheim/agent/service"
)

// maxCertificates is as much of a file of certificates as is read; what a distribution
// trusts is a quarter of that.
const maxCertificates = 1 << 20

// certificates reads the files of all checks: each read that hangs holds a thread of this
// process, which nothing can end.
var certificates = reader{read: readCertificates, reads: map[string]*reading{}}

// errHolds is of a file that was not read in the time of a check.
var errHolds = errors.New("its file system does not answer in time")

// reader reads files, each of them once at a time.
type reader struct {
	read  func(path string) ([]byte, error)
	mu    sync.Mutex
	reads map[string]*reading // those under way, by path
}

// reading is the read of one file.
type reading struct {
	done chan struct{} // closed when the others are set
	text []byte
	err  error
}

// text is what a file holds, unless ctx ends before that is known: then the read goes on,
// and whoever wants the same file meanwhile waits for that one.
func (r *reader) text(ctx context.Context, path string) ([]byte, error) {
	this, err := r.begin(path)
	if err != nil {
		return nil, err
	}
	select {
	case <-this.done:
		return this.text, this.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w: %w", path, errHolds, context.Cause(ctx))
	}
}

// begin begins to read a file, unless that is under way.
func (r *reader) begin(path string) (*reading, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if this := r.reads[path]; this != nil {
		return this, nil
	}
	if len(r.reads) == atOnce {
		return nil, &service.Error{Op: "read " + path, Kind: service.HostUnavailable,
			Err: fmt.Errorf("%d other files keep their readers waiting", atOnce)}
	}
	this := &reading{done: make(chan struct{})}
	r.reads[path] = this
	go func() {
		this.text, this.err = r.read(path)
		r.mu.Lock()
		delete(r.reads, path)
		r.mu.Unlock()
		close(this.done)
	}()
	return this, nil
}

// readCertificates waits for nobody but the disk or the file server, whatever the path
// leads to.
func readCertificates(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch info, err := f.Stat(); {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file", path)
	case info.Size() > maxCertificates:
		return nil, fmt.Errorf("%s has %d bytes; at most %d are read", path, info.Size(), maxCertificates)
	}
	return io.ReadAll(io.LimitReader(f, maxCertificates))
}
