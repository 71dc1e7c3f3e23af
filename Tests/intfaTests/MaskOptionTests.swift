import AttentionTestSupport
import IntFlashAttention
import TensorFiles
import Testing

/// Masks, sinks and slopes of the command line against the library.
@Suite struct MaskOptionTests {
  private let folder: TemporaryFolder
  private let inputs: TestInputs

  init() throws {
    folder = try TemporaryFolder()
    inputs = TestInputs(try InputFiles.shape())
    try InputFiles.write(inputs, to: folder.path("in.safetensors"))
  }

  private func run(_ arguments: String..., input: String = "in.safetensors") throws -> [Float] {
    let paths = [folder.path(input), "-o", folder.path("out.safetensors")]
    let run = try CommandRun(["run"] + paths + arguments)
    #expect(run.status == 0, "\(run.messages)")
    return try InputFiles.values("o", of: folder.path("out.safetensors"))
  }

  private func expected(
    _ additions: TestAdditions,
    _ options: AttentionOptions = AttentionOptions()
  ) throws -> [Float] {
    let plan = try AttentionPlan(inputs.shape, options: options)
    return try inputs.run(plan, additions).output
  }

  private func mask(_ type: ElementType) -> TestAdditions {
    var random = TestRandom(seed: 4)
    var additions = TestAdditions()
    let elements = (0..<70 * 90).map { _ in random.uniform() < 0.5 ? Float(0) : 1 }
    additions.mask = (elements, [70, 90])
    additions.maskType = type
    return additions
  }

  @Test(arguments: [ElementType.float32, .int8], ["mask.npy", "mask.safetensors"])
  func masksComeFromFiles(_ type: ElementType, _ name: String) throws {
    let additions = mask(type)
    let tensor = try Tensor(additions.mask?.elements ?? [], shape: [70, 90], elementType: type)
    if name.hasSuffix(".npy") {
      try NpyFile.write(tensor.view, to: folder.path(name))
    } else {
      var writer = SafetensorsWriter(metadata: [:])
      writer.add("mask", tensor.view)
      try writer.write(to: folder.path(name))
    }
    let result = try run("--mask", folder.path(name), "--causal")
    #expect(try result == expected(additions, AttentionOptions(mask: .causal)))
  }

  @Test func tensorsOfTheInputHold() throws {
    var additions = mask(.float32)
    additions.sinks = [1, -2, 0.5, 3]
    var writer = SafetensorsWriter(metadata: [:])
    for (name, values, shape) in [
      ("q", inputs.query, inputs.shape.queryShape), ("k", inputs.key, inputs.shape.keyShape),
      ("v", inputs.value, inputs.shape.valueShape),
      ("mask", additions.mask?.elements ?? [], [70, 90]), ("sink", additions.sinks ?? [], [4]),
    ] {
      let tensor = try Tensor(values, shape: shape)
      writer.add(name, tensor.view)
    }
    try writer.write(to: folder.path("with.safetensors"))
    #expect(try run(input: "with.safetensors") == expected(additions))
    // An option takes the place of the tensor.
    additions.sinks = [0, 0, 0, 0]
    let zeros = try Tensor(.float32, shape: [4])
    try NpyFile.write(zeros.view, to: folder.path("sink.npy"))
    let sink = folder.path("sink.npy")
    #expect(try run("--sink", sink, input: "with.safetensors") == expected(additions))
  }

  @Test func prefixesAndSlopesReachTheLibrary() throws {
    var additions = TestAdditions()
    additions.alibiSlopes = [0.25, 0.0625, 0.015625, 0.00390625]
    let options = AttentionOptions(mask: .prefixCausal(prefix: 50))
    #expect(try run("--alibi", "--prefix", "50") == expected(additions, options))
  }

  @Test func refusesMasksThatDoNotFit() throws {
    let tensor = try Tensor(.float32, shape: [3, 90])
    try NpyFile.write(tensor.view, to: folder.path("mask.npy"))
    let run = try CommandRun([
      "run", folder.path("in.safetensors"), "-o", folder.path("out.safetensors"), "--mask",
      folder.path("mask.npy"),
    ])
    #expect(run.status == 65)
    #expect(run.messages.contains("mask has shape [3, 90]"))
  }

  @Test func benchTakesThemToo() throws {
    let run = try CommandRun([
      "bench", "--lengths", "70", "--head-dims", "16", "--query-heads", "2", "--kv-heads", "1",
      "--repeat-seconds", "0", "--alibi", "--prefix", "9", "--format", "json",
    ])
    #expect(run.status == 0, "\(run.messages)")
  }

  @Test(arguments: [["--window", "1,1", "--prefix", "3"], ["--no-causal", "--prefix", "3"]])
  func refusesContradictions(_ arguments: [String]) throws {
    let run = try CommandRun(["explain"] + arguments)
    #expect(run.status == 64)
    #expect(run.messages.contains("--prefix"))
  }
}
