package api

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestBehind(t *testing.T) {
	parts := []part{{upto: 9}, {streams: []service.Stream{{ID: "a"}, {ID: "b"}}}, {from: 9, upto: 12}, {streams: []service.Stream{{ID: "c"}}}, {from: 12}}
	for text, want := range map[string][]part{
		"file:5":              append([]part{{from: 5, upto: 9, resumed: true}}, parts[1:]...),
		"file:12":             append([]part{{from: 12, upto: 12, resumed: true}}, parts[3:]...),
		"file:99":             {{from: 99, resumed: true}},
		"journal:b:s=1;i=2":   append([]part{{streams: parts[1].streams, after: "s=1;i=2"}}, parts[2:]...),
		"journal:x:s=1;i=2":   nil,
		"journal:c:s=1:2;i=2": append([]part{{streams: parts[3].streams, after: "s=1:2;i=2"}}, parts[4:]...),
	} {
		p, ok := parsePosition(text)
		require.True(t, ok, text)
		require.Equal(t, text, p.String())
		require.Equal(t, want, behind(p, parts), text)
	}
	for _, wrong := range []string{"", "5", "file:", "file:0", "file:-1", "file:x", "journal:", "journal:a", "journal:a:", "journal::s", "Journal:a:s"} {
		_, ok := parsePosition(wrong)
		require.False(t, ok, wrong)
	}
}

func TestPartsOf(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	stream := func(n uint64, from int64) service.Output {
		return service.Output{Incarnation: n, Began: at(int64(n)), LogFrom: from, Stream: service.Stream{ID: string(rune('a' + n))}}
	}
	file := func(n uint64, from int64) service.Output {
		return service.Output{Incarnation: n, Began: at(int64(n)), LogFrom: from}
	}
	streams := func(ids ...string) (all []service.Stream) {
		for _, id := range ids {
			all = append(all, service.Stream{ID: id})
		}
		return all
	}
	for name, c := range map[string]struct {
		outputs []service.Output
		want    []part
	}{
		"the file alone":           {nil, []part{{}}},
		"the journal alone":        {[]service.Output{stream(0, 0), stream(1, 0)}, []part{{streams: streams("a", "b")}}},
		"the file, then":           {[]service.Output{stream(0, 9)}, []part{{upto: 9, until: at(0)}, {streams: streams("a")}}},
		"the journal, then":        {[]service.Output{stream(0, 0), file(1, 0)}, []part{{streams: streams("a")}, {}}},
		"to and fro":               {[]service.Output{stream(0, 9), file(1, 9), stream(2, 12), stream(3, 12), file(4, 12)}, []part{{upto: 9, until: at(0)}, {streams: streams("a")}, {from: 9, upto: 12, until: at(2)}, {streams: streams("c", "d")}, {from: 12}}},
		"the file was lost":        {[]service.Output{stream(0, 9), file(1, 0), stream(2, 4)}, []part{{streams: streams("a")}, {upto: 4, until: at(2)}, {streams: streams("c")}}},
		"nothing came of the file": {[]service.Output{stream(0, 9), file(1, 9), stream(2, 9)}, []part{{upto: 9, until: at(0)}, {streams: streams("a", "c")}}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, partsOf(c.outputs)) })
	}
}
