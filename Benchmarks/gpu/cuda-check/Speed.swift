import ArgumentParser
import IntFlashAttention
import IntFlashAttentionCUDA

/// Times of whole calls and of their tile loops, on the device.
struct Speed: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Time calls on bfloat16 tensors in device memory.",
    discussion: """
      Times are medians between events in the stream, after calls that warm up. A call is what a \
      model makes: bfloat16 in, bfloat16 out, with checks, means, rotation and quantisation; the \
      loop is its largest kernel alone. Successive calls have different inputs.
      """
  )

  @Option(help: "Query and key/value heads.")
  var heads = 16

  @Option(help: "Tokens, between commas.", transform: Self.numbers)
  var lengths = [1024, 2048, 4096, 8192, 16384, 65536]

  @Option(help: "Head dimensions, between commas.", transform: Self.numbers)
  var headDims = [64, 128, 256]

  @Option(help: "Seconds for a row.")
  var seconds = 0.4

  @Option(help: "Calls of a row at least.")
  var calls = 10

  @Option(help: "Where the rows go as JSON.")
  var output: String

  private static func numbers(_ text: String) throws -> [Int] {
    try text.split(separator: ",").map {
      guard let number = Int($0), number > 0 else {
        throw ValidationError("'\(text)' is not a list of numbers")
      }
      return number
    }
  }

  /// Numbers in device memory, from which operands are cut at different places.
  private final class Pool {
    private let block: DeviceTensor
    private let elements: Int
    private let step: Int

    /// Room for `sets` of inputs of so many elements.
    init(elements: Int, sets: Int, on device: CUDADevice, _ stream: CUDAStream) throws {
      self.elements = elements
      step = (elements + 7) / 8 * 8
      let count = step * 3 * sets
      block = try DeviceTensor(.bfloat16, shape: [count], on: device)
      var random = SystemNormal(seed: 1)
      let piece = min(count, 1 << 20)
      let numbers = try Tensor(
        (0..<piece).map { _ in random.next() },
        shape: [piece],
        elementType: .bfloat16
      )
      for start in stride(from: 0, to: count, by: piece) {
        // The last piece overlaps the one before it.
        let place = min(start, count - piece)
        let target = unsafe try DeviceTensor(
          unsafeAddress: block.address + UInt(2 * place),
          .bfloat16,
          shape: [piece]
        )
        try target.copy(from: numbers, on: stream)
      }
    }

    func tensor(_ index: Int, _ shape: [Int]) throws -> DeviceTensor {
      unsafe try DeviceTensor(
        unsafeAddress: block.address + UInt(2 * step * index),
        .bfloat16,
        shape: shape
      )
    }
  }

  func run() throws {
    let (device, driver, compiler) = try CUDADevice.first()
    var rows: [String] = []
    for dimension in headDims {
      for length in lengths {
        for isCausal in [false, true] {
          for precision in [Precision.int8, .bfloat16] {
            let row = try measure(precision, length, dimension, isCausal, on: device)
            print(row)
            rows.append(row)
          }
        }
      }
    }
    let machine = JSON.object([
      "device": JSON.text(device.name),
      "computeCapability": JSON.text("\(device.major).\(device.minor)"),
      "multiprocessors": "\(device.multiprocessorCount)",
      "driverCUDA": JSON.text("\(driver)"), "nvrtc": JSON.text("\(compiler)"),
    ])
    try TextFile.write("{\"machine\": \(machine), \"rows\": \(JSON.list(rows))}\n", to: output)
  }

  private func measure(
    _ precision: Precision,
    _ length: Int,
    _ dimension: Int,
    _ isCausal: Bool,
    on device: CUDADevice
  ) throws -> String {
    let shape = try AttentionShape(
      queryHeadCount: heads,
      keyValueHeadCount: heads,
      queryLength: length,
      keyValueLength: length,
      headDimension: dimension
    )
    let descriptor = try AttentionDescriptor(
      shape: shape,
      recipe: precision.recipe,
      options: AttentionOptions(mask: isCausal ? .causal : .full)
    )
    let stream = try CUDAStream(on: device)
    let kernel = try CUDABackend(on: device).makeCUDAKernel(for: descriptor)
    // Inputs of several calls do not fit into the caches of the device together.
    let elements = heads * length * dimension
    let sets = elements < 1 << 26 ? 4 : 1
    let pool = try Pool(elements: elements, sets: sets, on: device, stream)
    let output = try DeviceTensor(.bfloat16, shape: shape.outputShape, on: device)
    var times: [(call: Double, loop: Double)] = []
    var (spent, index) = (0.0, 0)
    while times.count < calls || (spent < seconds && times.count < 200) {
      let set = index % sets
      let query = try pool.tensor(3 * set, shape.queryShape)
      let key = try pool.tensor(3 * set + 1, shape.keyShape)
      let value = try pool.tensor(3 * set + 2, shape.valueShape)
      let timer = try kernel.enqueueTimed(
        query: query,
        key: key,
        value: value,
        into: output,
        on: stream
      )
      let time = try timer.seconds()
      index += 1
      // The first three warm up.
      guard index > 3 else { continue }
      times.append(time)
      spent += time.call
    }
    try kernel.check(on: stream)
    func median(_ values: [Double]) -> Double { values.sorted()[values.count / 2] }
    return JSON.object([
      "implementation": JSON.text(precision.rawValue), "heads": "\(heads)",
      "length": "\(length)", "headDimension": "\(dimension)", "causal": "\(isCausal)",
      "seconds": "\(median(times.map(\.call)))", "loopSeconds": "\(median(times.map(\.loop)))",
      "calls": "\(times.count)",
    ])
  }
}

/// Numbers of a normal distribution, the same for the same seed.
struct SystemNormal {
  private var state: UInt64

  init(seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 | 1 }

  /// The sum of twelve uniform numbers.
  mutating func next() -> Float {
    var sum: Float = -6
    for _ in 0..<12 {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      sum += Float(state >> 40) * 0x1p-24
    }
    return sum
  }
}
