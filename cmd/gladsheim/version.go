package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// apiVersion is the version of the API that this command speaks.
const apiVersion = "gladsheim.v1"

// build says which program this, or the agent, is.
type build struct {
	Version string `json:"version"`
	API     string `json:"api"`
	Go      string `json:"go,omitempty"`
}

// versions is no message of the API: the agent does not know the client.
type versions struct {
	Client build  `json:"client"`
	Server *build `json:"server,omitempty"`
}

func (a *app) versionCommand() *cobra.Command {
	var clientOnly bool
	c := &cobra.Command{Use: "version", Short: "Show the versions of this command and of the agent"}
	c.Flags().BoolVar(&clientOnly, "client", false, "of this command only")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		v := versions{Client: build{Version: version, API: apiVersion, Go: runtime.Version()}}
		var info *gladsheimv1.HostInfo
		var err error
		if !clientOnly {
			if info, err = a.askHost(cmd.Context()); err == nil {
				v.Server = &build{Version: info.GetAgentVersion(), API: info.GetApiVersion()}
			}
		}
		if showErr := a.showVersions(v); showErr != nil {
			return showErr
		}
		return err
	}
	return c
}

func (a *app) showVersions(v versions) error {
	if a.machine() {
		return a.encode(v)
	}
	fmt.Fprintf(a.out, "client  %s (%s, %s)\n", v.Client.Version, v.Client.API, v.Client.Go)
	if v.Server == nil {
		return nil
	}
	_, err := fmt.Fprintf(a.out, "agent   %s (%s)\n", plain(v.Server.Version), plain(v.Server.API))
	return err
}
