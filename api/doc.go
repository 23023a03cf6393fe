// Package api is the border of the agent: it translates each call from the wire
// into service words, calls the agent, and translates the answer back. It
// decides nothing about services; it decides who may call, how much and how
// long, and how an error is told.
//
// The promises at the border:
//
//   - Only a caller the kernel vouches for is served: see Credentials. Whoever
//     is not known is nobody, and nobody may do anything.
//   - Only methods of one table are served, each with its access; a method that
//     is not in it is refused.
//   - Every name is read by service.ParseName before anything is done with it.
//   - Every refusal made here passes one table from service.Kind to a gRPC code,
//     and carries a GladsheimError and a google.rpc.ErrorInfo.
//   - Nothing a caller sends makes the agent hold more than a stated amount.
//   - Each change that was asked for is logged once, with who asked and what
//     came of it.
package api
