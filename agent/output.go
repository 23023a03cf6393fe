package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/agent/thjalfi"
	"github.com/gladsheim/gladsheim/journal"
	"github.com/gladsheim/gladsheim/logfile"
)

// outputs are where the output of services went: what is known of streams to the
// journal. A service that never had one has no entry.
type outputs struct {
	mu      sync.Mutex
	of      map[service.Name][]service.Output // oldest first
	asking  bool                              // what streams are called; see learn
	fresh   bool                              // there are some that were not asked for yet
	unsaved map[service.Name]bool             // those that are not on disk as they are
	turns   chan struct{}                     // full while as many last lines are read as may be at once

	probing sync.Mutex
	probed  time.Time // when the journal was last tried
	serves  bool
	why     error // it does not
}

// outlet decides where the output of a launch goes, and says so in l.
func (a *Agent) outlet(l *service.Launch, ref service.Ref) (logFrom int64, err error) {
	sink := l.Spec.Log
	if sink == service.LogAuto {
		sink = service.LogFile
		if l.Spec.LogFull == service.LogFullFail && a.journalServes(a.ctx) == nil {
			sink = service.LogJournal
		}
	}
	shown := sink.String()
	switch sink {
	case service.LogNull:
	case service.LogJournal:
		if err := a.cfg.Journal.Reachable(); err != nil {
			return 0, &service.Error{Op: "start", Service: l.Name, Kind: service.HostUnavailable,
				Err: fmt.Errorf(`its definition says "log": "journal": %w; write "auto" to have a file where there is no journal`, err)}
		}
		l.Stream = journal.NewStream(fmt.Sprintf("%s, incarnation %d,", l.Name, l.Incarnation), a.bootID)
		l.Stream.Unit = unitOf(ref)
	default:
		l.LogFile = a.logPath(l.Name)
		shown = l.LogFile
		if err := a.retakeDir(a.cfg.LogDir); err != nil { // somebody may have removed it
			return 0, noRoom(l.Name, err)
		}
		a.keepLog(&l.Spec)
	}
	if l.Spec.Notifies() {
		if l.NotifyPath, err = a.ears.open(&l.Spec); err != nil {
			return 0, &service.Error{Op: "start", Service: l.Name, Kind: service.HostUnavailable, Err: err}
		}
	}
	logFrom = a.logEnd(l.Name)
	a.noteOutput(l.Name, service.Output{Incarnation: l.Incarnation, Began: time.Now(), LogFrom: logFrom, Stream: l.Stream})
	a.registry.Revise(l.Name, func(s *service.Status) skirnir.News {
		s.Log = shown
		return skirnir.News{Silent: true}
	})
	return logFrom, nil
}

func noRoom(name service.Name, err error) error {
	return &service.Error{Op: "start", Service: name, Kind: service.HostUnavailable, Err: fmt.Errorf("%w: %w", thjalfi.ErrNoRoom, err)}
}

// journalServes tells why auto does not mean the journal, nil if it does. That it
// does is found out once, by writing and reading; that it does not, now and then.
func (a *Agent) journalServes(ctx context.Context) error {
	if err := a.cfg.Journal.Reachable(); err != nil {
		return err
	}
	o := &a.outputs
	o.probing.Lock()
	defer o.probing.Unlock()
	if !o.serves && (o.probed.IsZero() || time.Since(o.probed) > time.Minute) {
		o.why = a.cfg.Journal.Probe(ctx, a.bootID)
		o.serves, o.probed = o.why == nil, time.Now()
		if errors.Is(o.why, context.DeadlineExceeded) {
			o.why = nil // it is there; whether it can be read will be seen
		}
	}
	return o.why
}

// outputFinding tells where the output of services goes that do not say.
func (a *Agent) outputFinding(ctx context.Context) service.Finding {
	err := a.journalServes(ctx)
	if err == nil {
		return service.Finding{Level: service.SeverityOK, Title: `services with "log": "auto" write into the journal`}
	}
	f := service.Finding{Level: service.SeverityOK, Title: fmt.Sprintf(`services with "log": "auto" write into files below %s (%v)`, a.cfg.LogDir, err)}
	if a.cfg.Facts.Systemd.Has {
		f.Level, f.Detail, f.Fix = service.SeverityWarning, "systemd runs here, but its journal is not of use.", "See `systemctl status systemd-journald`; the agent tries again every minute."
	}
	return f
}

// unitOf is the unit that journald takes an incarnation to be in, "" for none.
func unitOf(ref service.Ref) string {
	if ref.Unit != "" {
		return ref.Unit
	}
	for _, part := range strings.Split(ref.Cgroup, "/") {
		if ext := path.Ext(part); ext == ".scope" || ext == ".service" {
			return part
		}
	}
	return ""
}

// keepLog has the log file of a service that runs, or is about to, cut when it is
// due.
func (a *Agent) keepLog(spec *service.Spec) {
	// One that an earlier version launched was given no rotation.
	a.cfg.Logs.Keep(a.logPath(spec.Name), cmp.Or(spec.Rotation, service.Defaults().Rotation))
}

// takeUpOutput sees to the output of an incarnation that an earlier agent launched,
// and tells where it goes. The record of its stream counts that could be written when
// others could not.
func (a *Agent) takeUpOutput(spec *service.Spec, incarnation uint64, logFrom int64, stream service.Stream) string {
	switch {
	case !a.streamOf(spec.Name, incarnation).IsZero():
		return service.LogJournal.String()
	case !stream.IsZero():
		a.noteOutput(spec.Name, service.Output{Incarnation: incarnation, Began: time.Now(), LogFrom: logFrom, Stream: stream})
		return service.LogJournal.String()
	case spec.Log == service.LogNull || spec.Log == service.LogJournal:
		return spec.Log.String()
	}
	// An agent of an earlier version does not record that it goes into the file again.
	a.noteOutput(spec.Name, service.Output{Incarnation: incarnation, Began: time.Now(), LogFrom: logFrom})
	a.keepLog(spec)
	return a.logPath(spec.Name)
}

// logEnd is where the end of a log file is; one that can not be looked at has none.
func (a *Agent) logEnd(name service.Name) int64 {
	stream, err := a.cfg.Logs.File(a.logPath(name)).Open()
	if err != nil {
		return 0
	}
	defer stream.Close()
	end, _ := stream.End()
	return end
}

// noteOutput keeps where an output goes, if the journal is in it. No launch fails
// because that can not be written: it is with the next record, and until then the
// doctor tells.
func (a *Agent) noteOutput(name service.Name, o service.Output) {
	a.writing.Lock()
	defer a.writing.Unlock()
	kept, was := a.Outputs(name), len(a.Outputs(name))
	if was > 0 && kept[was-1].Incarnation == o.Incarnation && kept[was-1].Stream.BootID == cmp.Or(o.Stream.BootID, a.bootID) {
		kept = kept[:was-1] // of an attempt that was not begun
	}
	if o.Stream.IsZero() && len(kept) == was && (was == 0 || kept[was-1].Stream.IsZero()) {
		return // it goes on in the file
	}
	if err := a.saveOutputs(name, append(kept, o)); err != nil {
		a.written(name, err)
	}
	if !o.Stream.IsZero() {
		a.learn()
	}
}

// saveOutputs keeps and writes them. The caller holds writing.
func (a *Agent) saveOutputs(name service.Name, all []service.Output) error {
	all = all[max(0, len(all)-skirnir.KeptOutputs):]
	err := a.store.SaveOutputs(name, all)
	a.outputs.mu.Lock()
	defer a.outputs.mu.Unlock()
	a.outputs.of[name] = all
	if a.outputs.unsaved[name] = err != nil; err == nil {
		delete(a.outputs.unsaved, name)
	}
	return err
}

// saveLateOutputs writes outputs that could not be written when they began.
func (a *Agent) saveLateOutputs(name service.Name) error {
	a.writing.Lock()
	defer a.writing.Unlock()
	a.outputs.mu.Lock()
	late := a.outputs.unsaved[name]
	a.outputs.mu.Unlock()
	if !late {
		return nil
	}
	return a.saveOutputs(name, a.Outputs(name))
}

// Outputs is what is known of where the output of a service went, oldest first. It
// is empty when all of it is in the log file.
func (a *Agent) Outputs(name service.Name) []service.Output {
	a.outputs.mu.Lock()
	defer a.outputs.mu.Unlock()
	return slices.Clone(a.outputs.of[name])
}

func (a *Agent) forgetOutputs(name service.Name) {
	a.outputs.mu.Lock()
	defer a.outputs.mu.Unlock()
	delete(a.outputs.of, name)
	delete(a.outputs.unsaved, name)
}

// streamOf is the stream of an incarnation, zero if it has none that is known.
func (a *Agent) streamOf(name service.Name, incarnation uint64) service.Stream {
	for _, o := range a.Outputs(name) {
		if o.Incarnation == incarnation && !o.Stream.IsZero() {
			return o.Stream
		}
	}
	return service.Stream{}
}

// learn has the journal asked what the latest streams are called, for many at a
// time, while their marks are in it. It does not wait.
func (a *Agent) learn() {
	o := &a.outputs
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fresh = true
	if !o.asking {
		o.asking = true
		a.background.Go(a.learning)
	}
}

// learning asks until all are known, or the journal does not tell.
func (a *Agent) learning() {
	const first, last = time.Second, 32 * time.Second
	o := &a.outputs
	for pause := first; ; pause *= 2 {
		select {
		case <-time.After(pause):
		case <-a.ctx.Done():
			return
		}
		unknown := a.unknownStreams()
		err := a.ask(a.ctx, unknown)
		o.mu.Lock()
		switch {
		case o.fresh:
			o.fresh, pause = false, first/2
		case len(unknown) == 0 || pause >= last:
			o.asking = false
			o.mu.Unlock()
			if err != nil && a.ctx.Err() == nil {
				a.cfg.Log.Warn("the journal does not tell of the output of services", "error", err)
			}
			return
		}
		o.mu.Unlock()
	}
}

// unknownStreams are those of this boot that the journal was not heard of yet.
func (a *Agent) unknownStreams(of ...service.Name) map[service.Name][]service.Stream {
	a.outputs.mu.Lock()
	defer a.outputs.mu.Unlock()
	out := map[service.Name][]service.Stream{}
	for name, all := range a.outputs.of {
		if len(of) > 0 && !slices.Contains(of, name) {
			continue
		}
		for _, o := range all {
			if !o.Stream.IsZero() && o.Stream.ID == "" && o.Stream.BootID == a.bootID {
				out[name] = append(out[name], o.Stream)
			}
		}
	}
	return out
}

// asked is how many streams are asked for at once.
const asked = 100

// ask asks the journal what streams are called, and keeps what it says.
func (a *Agent) ask(ctx context.Context, unknown map[service.Name][]service.Stream) error {
	var all []service.Stream
	for _, streams := range unknown {
		all = append(all, streams...)
	}
	ids := map[string]string{}
	for some := range slices.Chunk(all, asked) {
		found, err := a.cfg.Journal.Find(ctx, some)
		if err != nil {
			return err
		}
		for mark, id := range found {
			ids[mark] = id
		}
	}
	if len(ids) == 0 {
		return nil
	}
	a.writing.Lock()
	defer a.writing.Unlock()
	for name := range unknown {
		kept, news := a.Outputs(name), false
		for i := range kept {
			if id := ids[kept[i].Stream.Mark]; id != "" {
				kept[i].Stream.ID, news = id, true
			}
		}
		if !news {
			continue
		}
		if err := a.saveOutputs(name, kept); err != nil { // they are known for now
			a.written(name, err)
		}
	}
	return nil
}

// FindOutputs is Outputs with what the journal calls the streams; it asks for what
// is not known yet.
func (a *Agent) FindOutputs(ctx context.Context, name service.Name) ([]service.Output, error) {
	if len(a.Outputs(name)) == 0 {
		return nil, nil
	}
	_ = a.cfg.Journal.Sync(ctx) // who may not ask for it sees what is there
	if unknown := a.unknownStreams(name); len(unknown) > 0 {
		if err := a.ask(ctx, unknown); err != nil {
			return nil, &service.Error{Op: "read the log of", Service: name, Kind: service.HostUnavailable, Err: err}
		}
	}
	return a.Outputs(name), nil
}

// Of the end of an output, as much as is read for the last lines of an exit record.
const (
	lastLineCount = 20
	lastLineBytes = 16 << 10
	lastLineTime  = 10 * time.Second // that the journal has
	lastLineTurns = 4                // services whose lines the journal is asked for at once
)

// lastLines are those of an incarnation. An output that can not be read has none:
// an exit record waits for it for lastLineTime at most, whoever else does.
func (a *Agent) lastLines(spec *service.Spec, incarnation uint64, logFrom int64) []string {
	var lines [][]byte
	var err error
	switch {
	case !a.streamOf(spec.Name, incarnation).IsZero():
		lines, err = a.lastOfStream(spec.Name, incarnation)
	case spec.Log == service.LogNull || spec.Log == service.LogJournal:
		return nil
	default:
		lines, err = lastOfFile(a.cfg.Logs.File(a.logPath(spec.Name)), logFrom)
	}
	if err != nil {
		return []string{fmt.Sprintf("(the log can not be read: %v)", err)}
	}
	var out []string
	for _, line := range lines[max(0, len(lines)-lastLineCount):] {
		out = append(out, string(bytes.ToValidUTF8(line, []byte("\uFFFD"))))
	}
	if len(out) == 1 && out[0] == "" {
		return nil
	}
	return out
}

// lastOfStream reads the end of what an incarnation wrote into the journal.
func (a *Agent) lastOfStream(name service.Name, incarnation uint64) (lines [][]byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), lastLineTime)
	defer cancel()
	select {
	case a.outputs.turns <- struct{}{}:
		defer func() { <-a.outputs.turns }()
	case <-ctx.Done():
		return nil, fmt.Errorf("others wait for the journal: %w", ctx.Err())
	}
	if _, err := a.FindOutputs(ctx, name); err != nil {
		return nil, err
	}
	stream := a.streamOf(name, incarnation)
	size := 0
	err = a.cfg.Journal.Read(ctx, journal.Request{Streams: []service.Stream{stream}, Lines: lastLineCount}, func(l journal.Line) error {
		text := l.Text[max(0, len(l.Text)-lastLineBytes):]
		for size += len(text); size > lastLineBytes; lines = lines[1:] {
			size -= len(lines[0])
		}
		lines = append(lines, bytes.Clone(text))
		return nil
	})
	return lines, err
}

// lastOfFile reads the end of a log, but nothing before from unless it has become
// shorter.
func lastOfFile(log *logfile.File, from int64) ([][]byte, error) {
	tail, err := readTail(log, from)
	return bytes.Split(bytes.TrimRight(tail, "\n"), []byte("\n")), err
}

func readTail(log *logfile.File, from int64) ([]byte, error) {
	stream, err := log.Open()
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	end, err := stream.End()
	if err != nil {
		return nil, err
	}
	if from > end {
		from = 0
	}
	begin := max(from, end-lastLineBytes, stream.Oldest())
	tail, err := io.ReadAll(io.NewSectionReader(stream, begin, end-begin))
	if err != nil {
		return nil, err
	}
	if _, whole, more := bytes.Cut(tail, []byte("\n")); begin > from && more && len(whole) > 0 {
		tail = whole // without what is left of a line that began earlier
	}
	return tail, nil
}
