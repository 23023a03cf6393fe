package api

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// A request is told from others that have its id by all that it asks for, and by
// nothing else.
func TestARequestAndItsBody(t *testing.T) {
	bodies := map[string]identified{}
	for _, req := range []identified{
		&gladsheimv1.StartServiceRequest{ServiceName: "web"},
		&gladsheimv1.StartServiceRequest{ServiceName: "web", Args: []string{"a"}},
		&gladsheimv1.StartServiceRequest{ServiceName: "web", WorkingDirectory: "a"},
		&gladsheimv1.StartServiceRequest{ServiceName: "web", EnvironmentVars: map[string]string{"A": "1", "B": "2", "C": "3"}},
		&gladsheimv1.StartServiceRequest{ServiceName: "web", ResourceLimits: &gladsheimv1.ResourceLimits{MaxMemoryBytes: 1}},
		&gladsheimv1.StopServiceRequest{ServiceName: "web"},
		&gladsheimv1.StopServiceRequest{ServiceName: "web", Force: true},
		&gladsheimv1.StopServiceRequest{ServiceName: "web", TimeoutMs: ptr(uint32(0))},
		&gladsheimv1.RestartServiceRequest{ServiceName: "web"},
		&gladsheimv1.RestartServiceRequest{ServiceName: "web", ForceStop: true},
		&gladsheimv1.RestartServiceRequest{ServiceName: "web", StopTimeoutMs: ptr(uint32(0))},
		&gladsheimv1.KillRequest{ServiceName: "web"},
	} {
		none, err := toRequest(req)
		require.NoError(t, err)
		require.Zero(t, none)
		setID := func(id string) service.Request {
			m := req.ProtoReflect()
			m.Set(m.Descriptor().Fields().ByName("request_id"), protoreflect.ValueOfString(id))
			got, err := toRequest(req)
			require.NoError(t, err)
			require.Equal(t, id, got.ID)
			return got
		}
		one, other := setID("one"), setID("another")
		require.Equal(t, one.Body, other.Body, "the id is no part of it")
		require.Nil(t, bodies[one.Body], "%v and %v", bodies[one.Body], req)
		bodies[one.Body] = req
		for range 20 { // maps have no order
			require.Equal(t, one.Body, setID("one").Body)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	f := newFixture(t)
	calls := map[string]func(id string) error{
		"start": func(id string) error {
			_, err := f.gladsheim().StartService(callContext(t), &gladsheimv1.StartServiceRequest{ServiceName: "mail", RequestId: id})
			return err
		},
		"stop": func(id string) error {
			_, err := f.gladsheim().StopService(callContext(t), &gladsheimv1.StopServiceRequest{ServiceName: "web", RequestId: id})
			return err
		},
		"restart": func(id string) error {
			_, err := f.gladsheim().RestartService(callContext(t), &gladsheimv1.RestartServiceRequest{ServiceName: "web", RequestId: id})
			return err
		},
		"kill": func(id string) error {
			_, err := gladsheimv1.NewRuntimeServiceClient(f.conn).Kill(callContext(t), &gladsheimv1.KillRequest{ServiceName: "web", RequestId: id})
			return err
		},
	}
	requestOf := func(options any) service.Request {
		if start, ok := options.(service.StartOptions); ok {
			return start.Request
		}
		return options.(service.StopOptions).Request
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			began, said := len(f.agent.Calls()), len(f.log.String())
			for _, bad := range []string{strings.Repeat("x", maxRequestID+1), "a\nb", "ü", "\x7f"} {
				err := call(bad)
				refused(t, err, codes.InvalidArgument, "INVALID")
				require.Contains(t, status.Convert(err).Message(), "request_id")
			}
			require.Len(t, f.agent.Calls(), began, "nothing was asked of the agent")
			require.NotContains(t, f.log.String()[said:], "request_id=")
			id := strings.Repeat("~ ", maxRequestID/2)
			_ = call(id)
			require.Equal(t, id, requestOf(f.lastCall(t)).ID)
			require.Len(t, requestOf(f.lastCall(t)).Body, 32)
			require.Equal(t, 2, strings.Count(f.log.String()[said:], `request_id="`+id+`"`), "before it and after it")
			_ = call("")
			require.Zero(t, requestOf(f.lastCall(t)))
		})
	}
	f.agent.Before = func(context.Context, string) error {
		return &service.Error{Op: "stop", Service: service.MustName("web"), Kind: service.Conflict, Reason: service.ReasonRequestIDReused, Err: errors.New("no")}
	}
	refused(t, calls["stop"]("a"), codes.FailedPrecondition, service.ReasonRequestIDReused)
}
