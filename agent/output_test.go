package agent

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/agent/skirnir"
	"github.com/gladsheim/gladsheim/journal"
)

// Where there is no journal, auto is the file, and journal is no start; what an
// earlier agent knew of streams is kept.
func TestNoJournal(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		require.Empty(t, h.status(web).Log)
		require.Equal(t, h.path("log/web.log"), h.start(web).Log)
		require.Empty(t, h.Outputs(web))
		h.reopen()
		require.Equal(t, h.path("log/web.log"), h.status(web).Log)

		h.register(db, `"log": "journal"`, `"restart": {"policy": "never"}`)
		_, err := h.Start(t.Context(), db, service.StartOptions{})
		refused(t, err, service.HostUnavailable, `its definition says "log": "journal"`)
		require.Zero(t, h.host.Launches(db))

		streams := []service.Output{{Incarnation: 1, Stream: service.Stream{Mark: "m", BootID: "another", ID: "s"}}}
		require.NoError(t, h.store.SaveOutputs(web, streams))
		h.reopen()
		require.Equal(t, streams, h.Outputs(web))
		require.Equal(t, "journal", h.status(web).Log)
		h.stop(web)
		require.Equal(t, h.path("log/web.log"), h.start(web).Log)
		require.Len(t, h.Outputs(web), 2, "that it goes into the file again")
		h.stop(web)
		require.NoError(t, h.Unregister(t.Context(), web, "alice"))
		h.register(web)
		require.Empty(t, h.Outputs(web))
	})
}

// A launch that is tried again, since it could not be recorded, is one of which the
// output is known.
func TestOutputOfAttempts(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		note := func(incarnation uint64, boot, mark string) {
			h.noteOutput(web, service.Output{Incarnation: incarnation, Stream: service.Stream{Mark: mark, BootID: boot}})
		}
		note(1, "former", "a")
		note(1, "now", "b")
		for _, mark := range []string{"c", "d", "e"} {
			note(2, "now", mark)
		}
		var marks []string
		for _, o := range h.Outputs(web) {
			marks = append(marks, o.Stream.Mark)
		}
		require.Equal(t, []string{"a", "b", "e"}, marks)
	})
}

// That it can not be written where output goes is no reason not to launch: it is
// written when that can be, and the doctor tells until then.
func TestOutputsThatCanNotBeWritten(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		h.block("state/outputs/web.json")
		h.noteOutput(web, service.Output{Incarnation: 7, Stream: service.Stream{Mark: "a", BootID: "now"}})
		require.Len(t, h.Outputs(web), 1)
		require.Len(t, h.doctor(), 1)
		require.Contains(t, h.doctor()[0], "records can not be written in "+h.path("state/outputs"))
		h.unblock("state/outputs/web.json")
		require.Empty(t, h.doctor())
		h.reopen()
		require.Equal(t, "a", h.Outputs(web)[0].Stream.Mark)
	})
}

// What an agent of an earlier version launched into the file, which does not record
// that, is read from the file.
func TestOutputOfAnEarlierVersion(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web, `"log": "file"`)
		h.start(web)
		h.noteOutput(web, service.Output{Incarnation: 0, Stream: service.Stream{Mark: "a", BootID: "now"}})
		h.reopen()
		outputs := h.Outputs(web)
		require.Len(t, outputs, 2)
		require.True(t, outputs[1].Stream.IsZero())
		require.EqualValues(t, 1, outputs[1].Incarnation)
		h.reopen()
		require.Len(t, h.Outputs(web), 2)
	})
}

func TestUnitOf(t *testing.T) {
	for want, ref := range map[string]service.Ref{
		"":                        {Cgroup: "/gladsheim/svc-web-00000001"},
		"a.scope":                 {Unit: "a.scope", Cgroup: "/gladsheim.slice/a.scope"},
		"gladsheim-cgroups.scope": {Cgroup: "/gladsheim.slice/gladsheim-cgroups.scope/svc-web-00000001"},
	} {
		require.Equal(t, want, unitOf(ref))
	}
}

// The stream of what runs is known to the next agent, though only its record in the run
// directory could be written.
func TestStreamOfWhatRunsIsKnown(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		stream := service.Stream{Mark: "a", BootID: h.Agent.bootID}
		h.close()
		store, err := skirnir.OpenStore(h.path("state"), h.path("run"), nil)
		require.NoError(t, err)
		left, err := store.Load()
		require.NoError(t, err)
		left.Actual[0].Stream = stream
		require.NoError(t, store.SaveActual(left.Actual[0]))
		h.open()
		require.Equal(t, stream, h.streamOf(web, 1))
		require.Equal(t, "journal", h.status(web).Log)
	})
}

// What the journal calls a stream is known at once, also when it can not be written.
func TestStreamsThatCanNotBeSaved(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.start(web)
		script := h.path("journalctl")
		boot := strings.ReplaceAll(h.Agent.bootID, "-", "")
		entry := func(cursor, text string) string {
			return "__CURSOR=" + cursor + "\n__REALTIME_TIMESTAMP=1700000000000000\n_BOOT_ID=" + boot +
				"\n_PID=7\n_STREAM_ID=s1\n_TRANSPORT=stdout\nMESSAGE=" + text + "\n\n"
		}
		require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\ncat <<'E'\n"+entry("c1", "mark")+entry("c2", "the last words")+"E\n"), 0o755))
		h.Agent.cfg.Journal = journal.Journal{Program: script}
		h.block("state/outputs/web.json")
		h.outputs.mu.Lock()
		h.outputs.of[web] = []service.Output{{Incarnation: 1, Stream: service.Stream{Mark: "mark", PID: 7, BootID: h.Agent.bootID}}}
		h.outputs.mu.Unlock()
		spec := service.Spec{Name: web}
		require.Equal(t, []string{"the last words"}, h.lastLines(&spec, 1, 0))
	})
}

// A launch that is tried again, into a file, writes nothing into the stream of the first
// attempt.
func TestOutputOfASecondAttempt(t *testing.T) {
	opened(t, func(t *testing.T, h *house) {
		h.register(web)
		h.noteOutput(web, service.Output{Incarnation: 1, Stream: service.Stream{Mark: "a", BootID: h.Agent.bootID}})
		h.noteOutput(web, service.Output{Incarnation: 1, LogFrom: 5})
		require.True(t, h.streamOf(web, 1).IsZero())
	})
}
