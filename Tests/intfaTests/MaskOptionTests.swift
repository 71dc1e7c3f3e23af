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

  /// `--cache` gives what attention to a cache of the same tokens gives, sequence by sequence.
  @Test(arguments: [Precision.int8, .int4KeyValue, .bfloat16], [1, 2])
  func cachesAreThoseOfTheLibrary(_ precision: Precision, _ batch: Int) throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape(batch: batch))
    try InputFiles.write(inputs, to: folder.path("in.safetensors"))
    var additions = mask(.float32)
    additions.sinks = [1, -2, 0.5, 3]
    additions.alibiSlopes = Alibi.slopes(headCount: 4)
    let elements = try Tensor(additions.mask?.elements ?? [], shape: [70, 90])
    try NpyFile.write(elements.view, to: folder.path("mask.npy"))
    let sinks = try Tensor(additions.sinks ?? [], shape: [4])
    try NpyFile.write(sinks.view, to: folder.path("sink.npy"))
    let run = try CommandRun([
      "run", folder.path("in.safetensors"), "-o", folder.path("out.safetensors"), "--cache",
      "--precision", precision.rawValue, "--prefix", "20", "--log-sum-exp", "--alibi",
      "--mask", folder.path("mask.npy"), "--sink", folder.path("sink.npy"),
    ])
    #expect(run.status == 0, "\(run.messages)")
    let options = AttentionOptions(mask: .prefixCausal(prefix: 20))
    var (output, logSumExp): ([Float], [Float]) = ([], [])
    for index in 0..<batch {
      let (tokens, query) = try Self.sequence(index, of: inputs)
      let cache = try tokens.cache(precision)
      try tokens.append(0..<90, to: cache)
      let result = try query.attend(0..<70, cache, options, additions)
      output += result.output
      logSumExp += result.logSumExp
    }
    let path = folder.path("out.safetensors")
    #expect(try InputFiles.values("o", of: path) == output)
    #expect(try InputFiles.values("lse", of: path) == logSumExp)
    #expect(try SafetensorsFile(path: path).metadata["cache"] == "1")
  }

  /// Tokens and queries of one sequence of a batch; they are not equally many.
  private static func sequence(
    _ index: Int,
    of inputs: TestInputs
  ) throws -> (tokens: CachedInputs, query: CachedInputs) {
    func part(_ values: [Float], _ count: Int) -> [Float] {
      Array(values[index * (values.count / count)..<(index + 1) * (values.count / count)])
    }
    let shape = inputs.shape
    func made(queries: Int, keys: Int) throws -> TestInputs {
      TestInputs(try InputFiles.shape(queryLength: queries, keyValueLength: keys))
    }
    var tokens = try made(queries: 90, keys: 90)
    tokens.key = part(inputs.key, shape.batchCount)
    tokens.value = part(inputs.value, shape.batchCount)
    var query = try made(queries: 70, keys: 70)
    query.query = part(inputs.query, shape.batchCount)
    return (CachedInputs(tokens), CachedInputs(query))
  }

  @Test(arguments: ["float8", "int8Paper"])
  func cachesOfOtherPrecisionsAreRefused(_ precision: String) throws {
    let run = try CommandRun([
      "run", folder.path("in.safetensors"), "-o", folder.path("out.safetensors"), "--cache",
      "--precision", precision,
    ])
    #expect(run.status != 0)
    #expect(run.messages.contains("has no key/value cache"), "\(run.messages)")
  }

  /// The error column is against exact attention under the same mask.
  @Test func decodingTakesMasksAndSequences() throws {
    let mask = try Tensor(
      (0..<2 * 300).map { $0 % 3 == 0 ? Float(0) : 1 },
      shape: [2, 1, 1, 300],
      elementType: .int8
    )
    try NpyFile.write(mask.view, to: folder.path("keys.npy"))
    for backend in ["cpu", "reference"] {
      let run = try CommandRun([
        "bench", "--decode", "--lengths", "300", "--head-dims", "16", "--batch", "2",
        "--query-heads", "4", "--kv-heads", "2", "--precisions", "int8,float32", "--mask",
        folder.path("keys.npy"), "--alibi", "--repeat-seconds", "0", "--format", "json",
        "--backend", backend,
      ])
      #expect(run.status == 0, "\(run.messages)")
      for (row, precision) in zip(try run.objects(), [Precision.int8, .float32]) {
        let error = try #require(row["relativeL1"] as? Double)
        // Few rows, and channels with an offset: what a robust recipe may have.
        #expect(error <= 2 * precision.robustnessBound, "\(backend), \(precision)")
      }
    }
  }
}
