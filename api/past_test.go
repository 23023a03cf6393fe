package api

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

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
		"nothing came of the file": {[]service.Output{stream(0, 9), file(1, 9), stream(2, 9)}, []part{{upto: 9, until: at(0)}, {streams: streams("a", "c")}}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, partsOf(c.outputs)) })
	}
}
