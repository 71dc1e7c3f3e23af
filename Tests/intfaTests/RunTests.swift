import AttentionTestSupport
import Foundation
import IntFlashAttention
import TensorFiles
import Testing

@Suite struct RunTests {
  private static let name = "in.safetensors"

  /// Runs `intfa run` on the file of a folder; the result lies in `out.safetensors`.
  @discardableResult
  private func run(_ folder: TemporaryFolder, _ arguments: String...) throws -> CommandRun {
    let paths = [folder.path(Self.name), "-o", folder.path("out.safetensors")]
    let run = try CommandRun(["run"] + paths + arguments)
    #expect(run.status == 0, "\(run.messages)")
    return run
  }

  private func output(_ folder: TemporaryFolder, _ name: String = "o") throws -> [Float] {
    try InputFiles.values(name, of: folder.path("out.safetensors"))
  }

  @Test(arguments: Precision.allCases.filter { $0 != .int4QueryKey }, [false, true])
  func resultIsThatOfTheLibrary(precision: Precision, causal: Bool) throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape(batch: 2))
    try InputFiles.write(inputs, to: folder.path(Self.name))
    let flag = causal ? "--causal" : "--no-causal"
    try run(folder, "--precision", precision.rawValue, flag, "--log-sum-exp")
    let expected = try inputs.attend(
      precision.recipe,
      AttentionOptions(mask: causal ? .causal : .full),
      on: CPUBackend()
    )
    #expect(try output(folder) == expected.output)
    #expect(try output(folder, "lse") == expected.logSumExp)
    let file = try SafetensorsFile(path: folder.path("out.safetensors"))
    #expect(try file.entry("o").shape == inputs.shape.outputShape)
    #expect(file.metadata["precision"] == precision.rawValue)
    #expect(file.metadata["mask"] == (causal ? "causal" : "full"))
  }

  @Test func optionsReachTheLibrary() throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape(), .outlierChannel)
    try InputFiles.write(inputs, to: folder.path(Self.name))
    try run(folder, "--softmax-scale", "0.4", "--softcap", "3", "--window", "20,")
    let options = AttentionOptions(
      softmaxScale: 0.4,
      softcap: 3,
      mask: .sliding(left: 20, right: nil)
    )
    let expected = try inputs.attend(Precision.int8.recipe, options, on: CPUBackend())
    #expect(try output(folder) == expected.output)
  }

  @Test func referenceBackendRunsEverything() throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape())
    try InputFiles.write(inputs, to: folder.path(Self.name))
    try run(folder, "--backend", "reference", "--precision", "int4QueryKey")
    let expected = try inputs.attend(
      Precision.int4QueryKey.recipe,
      on: ReferenceBackend()
    )
    #expect(try output(folder) == expected.output)
  }

  @Test(arguments: [3, 4])
  func layoutsHoldTheSameNumbers(rank: Int) throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape())
    let plain = folder.path("plain.safetensors")
    try InputFiles.write(inputs, to: folder.path(Self.name), rank: rank)
    try run(folder)
    try FileManager.default.moveItem(atPath: folder.path("out.safetensors"), toPath: plain)
    try InputFiles.write(
      inputs,
      to: folder.path(Self.name),
      rank: rank,
      layout: .batchTokensHeads
    )
    try run(folder, "--layout", "bnhd")

    let permuted = try SafetensorsFile(path: folder.path("out.safetensors")).tensor("o")
    let expected = try SafetensorsFile(path: plain).tensor("o")
    #expect(permuted.shape.count == rank)
    #expect(expected.shape.count == rank)
    let order = rank == 3 ? [1, 0, 2] : [0, 2, 1, 3]
    #expect(try permuted.view.permuted(order).copyFloats() == expected.copyFloats())
  }

  @Test(arguments: [ElementType.float16, .bfloat16])
  func inputAndOutputTypes(type: ElementType) throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape())
    try InputFiles.write(inputs, to: folder.path(Self.name), elementType: type)
    try run(folder, "--output-type", type.rawValue)
    let file = try SafetensorsFile(path: folder.path("out.safetensors"))
    #expect(try file.entry("o").dtype == (type == .float16 ? "F16" : "BF16"))
    let plan = try AttentionPlan(inputs.shape)
    let expected = try inputs.run(plan, inputType: type).output
    let rounded = try Tensor(expected, shape: [expected.count], elementType: type)
    #expect(try output(folder) == rounded.copyFloats())
  }

  @Test func arraysGiveWhatTensorsGive() throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape())
    try InputFiles.write(inputs, to: folder.path(Self.name))
    try run(folder, "--causal", "--log-sum-exp")
    for (name, values, shape) in [
      ("q", inputs.query, inputs.shape.queryShape), ("k", inputs.key, inputs.shape.keyShape),
      ("v", inputs.value, inputs.shape.valueShape),
    ] {
      let tensor = try Tensor(values, shape: shape, elementType: .float16)
      try NpyFile.write(tensor.view, to: folder.path("\(name).npy"))
    }
    let run = try CommandRun(
      "run",
      "--query",
      folder.path("q.npy"),
      "--key",
      folder.path("k.npy"),
      "--value",
      folder.path("v.npy"),
      "-o",
      folder.path("o.npy"),
      "--causal",
      "--log-sum-exp"
    )
    #expect(run.status == 0, "\(run.messages)")
    let result = try NpyFile.read(path: folder.path("o.npy"))
    #expect(result.shape == inputs.shape.outputShape)
    #expect(try output(folder) == result.copyFloats())
    let sums = try NpyFile.read(path: folder.path("o.lse.npy"))
    #expect(sums.shape == inputs.shape.logSumExpShape)
    #expect(try output(folder, "lse") == sums.copyFloats())
  }

  @Test func metadataHoldsUnlessAnOptionIsGiven() throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape())
    try InputFiles.write(
      inputs,
      to: folder.path(Self.name),
      metadata: ["scale": "0.5", "causal": "1"]
    )
    func expected(_ options: AttentionOptions) throws -> [Float] {
      try inputs.attend(Precision.int8.recipe, options, on: CPUBackend()).output
    }
    let silent = try run(folder)
    #expect(silent.messages.contains("scale 0.5 and mask causal, from its metadata"))
    #expect(try output(folder) == expected(.init(softmaxScale: 0.5, mask: .causal)))
    let partly = try run(folder, "--no-causal")
    #expect(partly.messages.contains("scale 0.5, from its metadata"))
    #expect(try output(folder) == expected(.init(softmaxScale: 0.5)))
    let quiet = try run(folder, "--softmax-scale", "0.25", "--window", "3,0", "--quiet")
    #expect(quiet.messages.isEmpty)
    let window = AttentionOptions(softmaxScale: 0.25, mask: .sliding(left: 3, right: 0))
    #expect(try output(folder) == expected(window))
  }

  @Test func equalInputsGiveEqualFiles() throws {
    let folder = try TemporaryFolder()
    let inputs = TestInputs(try InputFiles.shape(queryHeads: 6, keyValueHeads: 3))
    try InputFiles.write(inputs, to: folder.path(Self.name))
    var files: Set<Data> = []
    for threads in ["1", "2", "7", "1"] {
      try run(folder, "--threads", threads, "--log-sum-exp", "--causal")
      files.insert(try folder.bytes("out.safetensors"))
    }
    #expect(files.count == 1)
  }

  @Test func reportHasItsKeys() throws {
    let folder = try TemporaryFolder()
    try InputFiles.write(TestInputs(try InputFiles.shape()), to: folder.path(Self.name))
    let run = try run(folder, "--format", "json")
    #expect(
      run.firstKeys == [
        "output", "precision", "backend", "isa", "batch", "queryHeads", "keyValueHeads",
        "queryLength", "keyValueLength", "headDimension", "valueDimension", "mask",
        "softmaxScale", "softcap", "threads", "seconds",
      ]
    )
  }
}
