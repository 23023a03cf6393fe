package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

func infoOf(t *testing.T, s *status.Status) *errdetails.ErrorInfo {
	t.Helper()
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			require.Equal(t, ErrorDomain, info.GetDomain())
			return info
		}
	}
	require.Fail(t, "no ErrorInfo", "%v", s)
	return nil
}

// Every kind has its code; a new one that is not in the table would be OK, which
// is the code of no error.
func TestEveryKindHasACode(t *testing.T) {
	want := map[service.Kind]codes.Code{
		service.Internal: codes.Internal, service.Invalid: codes.InvalidArgument, service.NotFound: codes.NotFound,
		service.Exists: codes.AlreadyExists, service.AlreadyRunning: codes.AlreadyExists,
		service.NotRunning: codes.FailedPrecondition, service.Conflict: codes.FailedPrecondition,
		service.Unenforceable: codes.FailedPrecondition, service.Exhausted: codes.ResourceExhausted,
		service.Denied: codes.PermissionDenied, service.Unauthenticated: codes.Unauthenticated,
		service.Timeout: codes.DeadlineExceeded, service.Cancelled: codes.Canceled, service.Unlaunchable: codes.FailedPrecondition,
		service.HostUnavailable: codes.Unavailable,
	}
	require.Len(t, want, int(service.NumKinds))
	for k := service.Kind(0); k < service.NumKinds; k++ {
		t.Run(k.String(), func(t *testing.T) {
			err := &service.Error{Op: "start", Service: service.MustName("web"), Kind: k, Err: errors.New("fork: EAGAIN")}
			s := refused(t, toStatus(fmt.Errorf("wrapped: %w", err)), want[k], k.DefaultReason())
			require.Equal(t, map[string]string{"kind": k.String(), "service": "web"}, infoOf(t, s).GetMetadata())
			require.Equal(t, "wrapped: cannot start web: fork: EAGAIN", s.Message())
			told := s.Details()[0].(*gladsheimv1.GladsheimError)
			require.Equal(t, string(k.DefaultReason()), told.GetCode())
			require.Equal(t, s.Message(), told.GetMessage())
			require.Equal(t, "web", told.GetServiceName())
			require.Equal(t, "fork: EAGAIN", told.GetDetails())
		})
	}
}

func TestOtherErrors(t *testing.T) {
	require.NoError(t, toStatus(nil))
	refused(t, toStatus(errors.New("what")), codes.Internal, "INTERNAL")
	refused(t, toStatus(fmt.Errorf("x: %w", context.DeadlineExceeded)), codes.DeadlineExceeded, "TIMEOUT")
	refused(t, toStatus(context.Canceled), codes.Canceled, "CANCELLED")
	refused(t, toStatus(&service.Error{Kind: service.Invalid, Reason: service.ReasonBadName}), codes.InvalidArgument, "BAD_NAME")
	require.Equal(t, codes.DataLoss, status.Code(toStatus(status.Error(codes.DataLoss, "of gRPC's own"))))
	// An error of ours around a status keeps our kind.
	wrapped := &service.Error{Op: "ask", Kind: service.HostUnavailable, Err: status.Error(codes.DataLoss, "x")}
	refused(t, toStatus(wrapped), codes.Unavailable, "HOST_UNAVAILABLE")
}

func TestFaultsAreToldTwice(t *testing.T) {
	err := &service.Error{Op: "register", Kind: service.Invalid, Reason: service.ReasonBadDefinition, Faults: []service.Fault{
		{File: "web.json", Line: 3, Column: 9, Field: "limits.memory_max", Message: "is too small"},
		{Field: "exec", Message: "is required"},
	}}
	s := refused(t, toStatus(err), codes.InvalidArgument, "BAD_DEFINITION")
	require.Equal(t, "cannot register: web.json:3:9: limits.memory_max: is too small; exec: is required", s.Message())
	var faults []*gladsheimv1.DefinitionFault
	var general *errdetails.BadRequest
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *gladsheimv1.DefinitionFault:
			faults = append(faults, d)
		case *errdetails.BadRequest:
			general = d
		}
	}
	require.Len(t, general.GetFieldViolations(), 2)
	require.Equal(t, "limits.memory_max", general.GetFieldViolations()[0].GetField())
	require.True(t, proto.Equal(&gladsheimv1.DefinitionFault{
		File: "web.json", Line: 3, Column: 9, Field: "limits.memory_max", Message: "is too small",
	}, faults[0]))
	require.Equal(t, "exec", faults[1].GetField())
}

// Common clients take 16 KiB of headers in all.
func TestAStatusFitsIntoHeaders(t *testing.T) {
	awful := strings.Repeat("ü\n\xff", 900)
	err := &service.Error{Op: "apply", Service: service.MustName("web"), Kind: service.Invalid, Err: errors.New(awful)}
	for range 60 {
		err.Faults = append(err.Faults, service.Fault{File: awful, Line: 1, Column: 1, Field: awful, Message: awful})
	}
	s := status.Convert(toStatus(err))
	encoded, encodeErr := proto.Marshal(s.Proto())
	require.NoError(t, encodeErr)
	escaped := 0
	for _, b := range []byte(s.Message()) {
		if escaped++; b < ' ' || b > '~' {
			escaped += 2
		}
	}
	require.Less(t, len(encoded)*4/3+escaped+256, 15<<10)
	faults := s.Details()
	require.Contains(t, faults[len(faults)-1].(*gladsheimv1.DefinitionFault).GetMessage(), "more faults are not shown")

	f := newFixture(t)
	f.agent.Before = func(context.Context, string) error { return err }
	var trailer metadata.MD
	_, callErr := gladsheimv1.NewGladsheimServiceClient(f.conn).ListServices(callContext(t), &gladsheimv1.ListServicesRequest{})
	require.NoError(t, callErr) // a list asks for nothing that can fail
	_, callErr = gladsheimv1.NewGladsheimServiceClient(f.dial("unix://"+f.path)).GetServiceStatus(callContext(t),
		&gladsheimv1.ServiceStatusRequest{ServiceName: "web"})
	require.Equal(t, codes.InvalidArgument, status.Code(callErr), "%v %v", callErr, trailer)
	require.Len(t, status.Convert(callErr).Details(), len(faults))
}

func TestClip(t *testing.T) {
	require.Equal(t, "abc", clip("abc", 3))
	for limit := 3; limit < 12; limit++ {
		got := clip("aüöä€😀xyzxyz", limit)
		require.LessOrEqual(t, len(got), limit)
		require.True(t, strings.HasSuffix(got, "…"), got)
		require.NotContains(t, got, "\uFFFD")
	}
	require.Equal(t, "a\uFFFDb", clip("a\xffb", 9))
}

// What becomes of a service is beside what failed.
func TestOutlookOfAnError(t *testing.T) {
	err := &service.Error{Op: "start", Service: service.MustName("web"), Kind: service.Unlaunchable, Outlook: "it is tried again in 1s, attempt 1 of 3"}
	require.Equal(t, "it is tried again in 1s, attempt 1 of 3", toError(err).GetOutlook())
	require.NotContains(t, toError(err).GetMessage(), "again")
}

// Of the last lines the latest travel, as far as there is room.
func TestLastLinesOfAnError(t *testing.T) {
	err := &service.Error{Op: "start", Service: service.MustName("web"), Kind: service.Timeout, Reason: service.ReasonStartupTimeout}
	for i := range 20 {
		err.LastLines = append(err.LastLines, fmt.Sprintf("line %d \xff", i))
	}
	lines := toError(err).GetLastLines()
	require.Len(t, lines, 20)
	require.Equal(t, "line 0 \xff", string(lines[0]))
	require.Equal(t, "line 19 \xff", string(lines[19]))
	for i := range err.LastLines {
		err.LastLines[i] += strings.Repeat("x", 500)
	}
	lines = toError(err).GetLastLines()
	require.Len(t, lines, maxLineBytes/(maxLineText+2))
	require.Equal(t, err.LastLines[19][:maxLineText], string(lines[len(lines)-1]))
	refused(t, toStatus(err), codes.DeadlineExceeded, service.ReasonStartupTimeout)
}
