/** @module Labels that a node is started with: what is too long is refused at once, with what to do. */
import { expect, spyOn, test } from "bun:test";
import { EXIT_BAD_START, runCli } from "../src/cli.ts";

test.each([
  [["--label", `zone=${"x".repeat(1_001)}`], "has 4 and 1001 characters: a label's value has at most 1000 characters"],
  [["--label", `${"k".repeat(201)}=a`], "has 201 and 1 characters: a label's name has 1 to 200 characters"],
  [
    Array.from({ length: 101 }, (_, n) => ["--label", `l${n}=a`]).flat(),
    "--label is given 101 times: a node has at most 100 labels",
  ],
  [
    Array.from({ length: 20 }, (_, n) => ["--label", `l${n}=${"x".repeat(990)}`]).flat(),
    "the labels of --label have 19870 characters in all: a node's have at most 16384; put long texts elsewhere",
  ],
  [["--network-cidr", "010.213.0.0/16"], "is no usable range"],
])("the command line refuses labels that no master keeps (point 5) %#", async (given, message) => {
  const said = spyOn(console, "error").mockImplementation(() => {});
  try {
    expect(await runCli(["bootstrap", "--data-dir", "/nonexistent/x", ...given], {})).toBe(EXIT_BAD_START);
    expect(said.mock.calls[0]?.[0]).toContain(message);
  } finally {
    said.mockRestore();
  }
});
