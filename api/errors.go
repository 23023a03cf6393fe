package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// ErrorDomain is the domain of every google.rpc.ErrorInfo sent from here.
const ErrorDomain = "gladsheim"

// codeOf is the one table from kinds to gRPC codes.
var codeOf = [service.NumKinds]codes.Code{
	service.Internal:        codes.Internal,
	service.Invalid:         codes.InvalidArgument,
	service.NotFound:        codes.NotFound,
	service.Exists:          codes.AlreadyExists,
	service.AlreadyRunning:  codes.AlreadyExists,
	service.NotRunning:      codes.FailedPrecondition,
	service.Conflict:        codes.FailedPrecondition,
	service.Unenforceable:   codes.FailedPrecondition,
	service.Exhausted:       codes.ResourceExhausted,
	service.Denied:          codes.PermissionDenied,
	service.Unauthenticated: codes.Unauthenticated,
	service.Timeout:         codes.DeadlineExceeded,
	service.Cancelled:       codes.Canceled,
	service.Unlaunchable:    codes.FailedPrecondition,
	service.HostUnavailable: codes.Unavailable,
}

// A status travels in HTTP/2 headers, of which common clients take 16 KiB in
// all; a larger one would be lost as a whole. The text goes three times, once of
// it escaped; the rest is encoded in base64.
const (
	maxErrorText  = 1 << 10
	maxFaultText  = 300
	maxFaultBytes = 2 << 10 // of all faults together, in each of their two forms
	maxLineText   = 300
	maxLineBytes  = 2 << 10 // of all last lines together
)

// kindOf is service.KindOf that also knows the errors of a context.
func kindOf(err error) service.Kind {
	if _, ok := errors.AsType[*service.Error](err); ok {
		return service.KindOf(err)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return service.Timeout
	case errors.Is(err, context.Canceled):
		return service.Cancelled
	}
	return service.Internal
}

// reasonOf is service.ReasonOf over kindOf.
func reasonOf(err error) service.Reason {
	if e, ok := errors.AsType[*service.Error](err); ok && e.Reason != "" {
		return e.Reason
	}
	return kindOf(err).DefaultReason()
}

// messageOf is what err says; of a bare context's it says what that means here.
func messageOf(err error) string {
	switch err {
	case context.DeadlineExceeded:
		return "cannot answer in time: what was asked for may still happen"
	case context.Canceled:
		return "cannot answer: the caller has left"
	}
	return err.Error()
}

// toStatus turns any error into the gRPC status that tells it. A status that
// gRPC itself made, such as for a broken stream, passes as it is.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ours := errors.AsType[*service.Error](err); !ours {
		if s, ok := status.FromError(err); ok {
			return s.Err()
		}
	}
	kind, told := kindOf(err), toError(err)
	info := &errdetails.ErrorInfo{Reason: told.Code, Domain: ErrorDomain, Metadata: map[string]string{"kind": kind.String()}}
	if told.ServiceName != nil {
		info.Metadata["service"] = *told.ServiceName
	}
	details := []protoadapt.MessageV1{told, info}
	if e, ok := errors.AsType[*service.Error](err); ok {
		details = append(details, faultDetails(e.Faults)...)
	}
	s, detailErr := status.New(codeOf[kind], told.Message).WithDetails(details...)
	if detailErr != nil {
		return status.Error(codes.Internal, "cannot tell an error: "+detailErr.Error())
	}
	return s.Err()
}

// toError tells an error but for its faults.
func toError(err error) *gladsheimv1.GladsheimError {
	told := &gladsheimv1.GladsheimError{Code: string(reasonOf(err)), Message: clip(messageOf(err), maxErrorText)}
	e, ok := errors.AsType[*service.Error](err)
	if !ok {
		return told
	}
	if !e.Service.IsZero() {
		name := e.Service.String()
		told.ServiceName = &name
	}
	if e.Err != nil {
		cause := clip(e.Err.Error(), maxErrorText)
		told.Details = &cause
	}
	told.Outlook = clip(e.Outlook, maxErrorText)
	room := maxLineBytes
	for _, line := range slices.Backward(e.LastLines) {
		line = line[:min(len(line), maxLineText)]
		if room -= len(line) + 2; room < 0 {
			break
		}
		told.LastLines = append(told.LastLines, []byte(line))
	}
	slices.Reverse(told.LastLines)
	return told
}

// faultDetails tells each fault twice: to general clients as a violation, to
// ours with its place.
func faultDetails(faults []service.Fault) []protoadapt.MessageV1 {
	if len(faults) == 0 {
		return nil
	}
	general := &errdetails.BadRequest{}
	details := []protoadapt.MessageV1{general}
	tell := func(f *gladsheimv1.DefinitionFault) {
		general.FieldViolations = append(general.FieldViolations, &errdetails.BadRequest_FieldViolation{
			Field: f.Field, Description: f.Message,
		})
		details = append(details, f)
	}
	room := maxFaultBytes
	for i, fault := range faults {
		f := &gladsheimv1.DefinitionFault{
			File: clip(fault.File, maxFaultText), Line: uint32(max(0, fault.Line)), Column: uint32(max(0, fault.Column)),
			Field: clip(fault.Field, maxFaultText), Message: clip(fault.Message, maxFaultText),
		}
		if room -= len(f.File) + len(f.Field) + len(f.Message) + 3*len("field"); room < 0 {
			tell(&gladsheimv1.DefinitionFault{Message: fmt.Sprintf("%d more faults are not shown", len(faults)-i)})
			break
		}
		tell(f)
	}
	return details
}

// clip makes s fit for a message: valid UTF-8 of at most limit bytes.
func clip(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit-len("…")]
		for len(s) > 0 && s[len(s)-1]&0xC0 == 0x80 { // do not cut a rune in two
			s = s[:len(s)-1]
		}
		if len(s) > 0 && s[len(s)-1] >= 0xC0 {
			s = s[:len(s)-1]
		}
		s += "…"
	}
	return utf8(s)
}

// utf8 makes s a string that protobuf accepts.
func utf8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
