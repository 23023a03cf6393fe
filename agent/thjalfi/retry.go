package thjalfi

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gladsheim/gladsheim/agent/service"
)

// keptRequests is how many requests with an id are known of a service, in all.
const keptRequests = 16

// remember notes a request with an id, to be recorded with what it begins: so the
// next agent knows that it was begun, or it was not.
func (a *actor) remember(r request) error {
	if r.ID == "" {
		return nil
	}
	if len(a.asked) == keptRequests {
		oldest := slices.IndexFunc(a.asked, func(k service.Asked) bool { return k.Done })
		if oldest < 0 {
			return &service.Error{Op: r.kind.String(), Service: a.name, Kind: service.Exhausted,
				Err: fmt.Errorf("%d requests with an id are under way already", keptRequests)}
		}
		a.asked = slices.Delete(a.asked, oldest, oldest+1)
	}
	a.asked = append(a.asked, r.asked())
	return nil
}

func (r request) asked() service.Asked {
	return service.Asked{ID: r.ID, Body: r.Body, Actor: r.actor, Kind: r.kind, Incarnation: r.incarnation}
}

// recall answers a retry as the first request is or was answered. It tells whether
// it is one.
func (a *actor) recall(r request) bool {
	at := slices.IndexFunc(a.asked, func(k service.Asked) bool { return k.ID == r.ID && k.Actor == r.actor })
	if r.ID == "" || at < 0 {
		return false
	}
	first := a.asked[at]
	r.incarnation = first.Incarnation
	switch {
	case first.Body != r.Body:
		r.reply <- &service.Error{Op: r.kind.String(), Service: a.name, Kind: service.Conflict, Reason: service.ReasonRequestIDReused,
			Err: errors.New("another request had this id; a retry asks for the same, and a new request has a new id")}
	case first.Done:
		if a.unrecorded != nil { // now that may be written down
			a.record()
		}
		a.reply(r, first.Failure.Of(a.name))
	default:
		a.waiters = append(a.waiters, r)
	}
	return true
}

// conclude notes what came of the requests with an id whose wish has come true or
// can not any more, so that it is recorded before anybody is told. It tells whether
// there are such.
func (a *actor) conclude() bool { return a.settle(a.settled) }

func (a *actor) settle(over func(kind service.EventKind, incarnation uint64) (bool, error)) bool {
	news := false
	for i := range a.asked {
		k := &a.asked[i]
		if k.Done {
			continue
		}
		var err error
		if k.Done, err = over(k.Kind, k.Incarnation); k.Done {
			k.Failure, news = service.FailureOf(err), true
		}
	}
	return news
}
