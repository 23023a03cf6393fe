package service

import "errors"

// Request tells a retry from a new request: a caller that did not hear the answer
// asks again with the same id. The zero Request is never a retry.
type Request struct {
	ID   string // of the caller's choice, "" for none
	Body string // a digest of what is asked for
}

// Asked is a request with an id that was begun, and what came of it.
type Asked struct {
	ID          string    `json:"id"`
	Body        string    `json:"body"`
	Actor       string    `json:"actor"` // ids of different actors are different ones
	Kind        EventKind `json:"kind"`
	Incarnation uint64    `json:"incarnation"` // that was to be ready (start, restart) or gone (stop, kill)
	Done        bool      `json:"done"`
	Failure     *Failure  `json:"failure,omitempty"` // nil when it is done: it came true
}

// Failure is an error that can be kept.
type Failure struct {
	Op     string `json:"op"` // "" for an error that is no Error
	Kind   Kind   `json:"kind"`
	Reason Reason `json:"reason"`
	Text   string `json:"text"`
}

// FailureOf is err as it can be kept, nil for nil.
func FailureOf(err error) *Failure {
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return &Failure{Text: err.Error()}
	}
	f := &Failure{Op: e.Op, Kind: e.Kind, Reason: e.Reason}
	if e.Err != nil {
		f.Text = e.Err.Error()
	}
	return f
}

// Of is the error again, about a service; nil for no Failure.
func (f *Failure) Of(name Name) error {
	switch {
	case f == nil:
		return nil
	case f.Op == "":
		return errors.New(f.Text)
	}
	e := &Error{Op: f.Op, Service: name, Kind: f.Kind, Reason: f.Reason}
	if f.Text != "" {
		e.Err = errors.New(f.Text)
	}
	return e
}
