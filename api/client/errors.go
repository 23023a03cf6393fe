package client

import (
	"context"
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// domain is that of every google.rpc.ErrorInfo an agent sends.
const domain = "gladsheim"

// kindOf finds a kind by the code where the agent did not get to say more, as
// when gRPC itself refuses.
var kindOf = map[codes.Code]service.Kind{
	codes.InvalidArgument:    service.Invalid,
	codes.OutOfRange:         service.Invalid,
	codes.NotFound:           service.NotFound,
	codes.AlreadyExists:      service.Exists,
	codes.FailedPrecondition: service.Conflict,
	codes.Aborted:            service.Conflict,
	codes.ResourceExhausted:  service.Exhausted,
	codes.PermissionDenied:   service.Denied,
	codes.Unauthenticated:    service.Unauthenticated,
	codes.DeadlineExceeded:   service.Timeout,
	codes.Canceled:           service.Cancelled,
	codes.Unavailable:        service.HostUnavailable,
}

// KindOf tells the kind of an error that a call returned. Of an agent that can
// not be reached it is service.HostUnavailable; see Unreachable.
func KindOf(err error) service.Kind {
	switch {
	case errors.Is(err, context.Canceled):
		return service.Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		return service.Timeout
	}
	named := info(err).GetMetadata()["kind"]
	for kind := service.Kind(0); kind < service.NumKinds; kind++ {
		if kind.String() == named {
			return kind
		}
	}
	return kindOf[status.Code(err)]
}

// ReasonOf tells the reason of an error that a call returned, "" if the agent
// gave none.
func ReasonOf(err error) service.Reason {
	if info := info(err); info != nil {
		return service.Reason(info.GetReason())
	}
	return ""
}

// ServiceOf tells the service an error is about, "" if it is about none.
func ServiceOf(err error) string { return info(err).GetMetadata()["service"] }

// Unreachable tells whether a call failed because there was no agent to answer.
func Unreachable(err error) bool {
	return status.Code(err) == codes.Unavailable && info(err) == nil
}

// agentLeaving is the reason of a stream that ends because the agent stops.
const agentLeaving service.Reason = "AGENT_LEAVING"

// Gone tells whether a stream ended because its agent did, or was not opened
// because there is none. With the next agent it can be opened again.
func Gone(err error) bool { return Unreachable(err) || ReasonOf(err) == agentLeaving }

// Message is what an error says to people.
func Message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// Faults are what is wrong with a definition, and where; nil if that is not
// what the error is about.
func Faults(err error) []service.Fault {
	var faults []service.Fault
	for _, d := range status.Convert(err).Details() {
		if f, ok := d.(*gladsheimv1.DefinitionFault); ok {
			faults = append(faults, service.Fault{
				File: f.GetFile(), Line: int(f.GetLine()), Column: int(f.GetColumn()), Field: f.GetField(), Message: f.GetMessage(),
			})
		}
	}
	return faults
}

// LastLines are the last lines of the output of an instance that did not become ready,
// the latest last; nil if that is not what the error is about, or there are none.
func LastLines(err error) []string {
	var lines []string
	for _, d := range status.Convert(err).Details() {
		if e, ok := d.(*gladsheimv1.GladsheimError); ok {
			for _, line := range e.GetLastLines() {
				lines = append(lines, string(line))
			}
		}
	}
	return lines
}

// Outlook is what becomes of a service whose start has failed, "" if there was nothing to
// tell.
func Outlook(err error) string {
	for _, d := range status.Convert(err).Details() {
		if e, ok := d.(*gladsheimv1.GladsheimError); ok {
			return e.GetOutlook()
		}
	}
	return ""
}

func info(err error) *errdetails.ErrorInfo {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == domain {
			return info
		}
	}
	return nil
}
