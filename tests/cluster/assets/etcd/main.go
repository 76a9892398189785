// Command etcd is etcd's own main, from its server module: the root module of etcd also holds
// its integration tests, whose dependencies we do not want.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
