internal import CAttentionKernels

/// One call under way: the pre-pass, stage by stage.
///
/// `CPUCall+Values` has the part of the values, `CPUCall+Attend` the tile loop.
///
/// Every stage cuts its work into items that write places of their own, so nothing depends on which
/// thread runs what.
@safe
final class CPUCall: @unchecked Sendable {
  // Sendable: constants, and memory of which each item of a stage writes its own part.
  let kernel: CPUKernel
  let operands: AttentionOperands
  let workspace: CPUWorkspace
  let layout: CPUWorkspaceLayout
  /// The threads that share the stages; nil is the calling thread alone.
  let team: ThreadTeam?
  let kernels: intfa_cpu_kernels
  let shape: AttentionShape
  let recipe: QuantizationRecipe
  /// Which keys the mask of the call hides from whole query blocks; nil without a mask.
  let maskUnits: CPUMaskUnits?

  init(
    kernel: CPUKernel,
    operands: AttentionOperands,
    workspace: CPUWorkspace,
    team: ThreadTeam?
  ) {
    self.kernel = kernel
    self.operands = operands
    self.workspace = workspace
    layout = workspace.layout
    self.team = team
    shape = kernel.descriptor.shape
    recipe = kernel.descriptor.recipe
    maskUnits = operands.mask.map {
      CPUMaskUnits(
        $0,
        queryBlockCount: kernel.queryBlockCount,
        keyValueLength: kernel.descriptor.shape.keyValueLength
      )
    }
    unsafe kernels = kernel.instructionSet.kernels
  }

  // MARK: Places

  typealias Region = CPUWorkspaceLayout.Region

  /// The part of a region that belongs to one head.
  func place<T>(_ region: Region, _ head: Int = 0, as type: T.Type = Float.self)
    -> UnsafeMutablePointer<T>
  {
    unsafe (workspace.base + region.offset + head * region.stride).assumingMemoryBound(to: type)
  }

  /// The part of a seat's region.
  func place<T>(_ region: Region, seat: Int, part: Int = 0, as type: T.Type = Float.self)
    -> UnsafeMutablePointer<T>
  {
    let offset = region.offset + part * region.stride + seat * layout.seatByteCount
    return unsafe (workspace.base + offset).assumingMemoryBound(to: type)
  }

  /// Rows of one head of an operand; heads are numbered batch-major.
  func rows(_ operand: AttentionOperands.Operand, head: Int) -> intfa_rows {
    unsafe operand.rows(head: head)
  }

  func forEachItem(_ count: Int, _ body: (_ item: Int, _ seat: Int) -> Void) {
    ThreadPool.shared.run(itemCount: count, in: team, body)
  }

  /// The rows of piece `piece` of those that are quantised together.
  func pieceRows(_ piece: Int, of count: Int) -> (begin: Int64, end: Int64) {
    rows(ofPiece: piece, length: kernel.tileSizes.packLength, count: count)
  }

  private func rows(ofPiece piece: Int, length: Int, count: Int) -> (begin: Int64, end: Int64) {
    (Int64(piece * length), Int64(min((piece + 1) * length, count)))
  }

  /// The key/value head, batch-major, that a query head reads.
  func keyHead(ofQueryHead head: Int) -> Int { head / shape.groupSize }

  /// Size of the diagonal blocks of the rotation of queries and keys: what their product is too
  /// large by, as kernels rotate without normalisation.
  var queryKeyBlockLength: Int {
    recipe.rotatesQueryAndKey
      ? HadamardRotation(dimension: shape.headDimension).blockLength : 1
  }

  /// Kernel logit units per unit of the product of unscaled rotated rows.
  var logitUnit: Float {
    kernel.descriptor.softmaxScale * Self.log2e * kernel.method.logitSteps
      / Float(queryKeyBlockLength)
  }

  static let log2e: Float = 1.442695

  // MARK: Survey

  private func surveyed(_ item: Int) -> (
    tensor: InputCheck.Tensor, operand: AttentionOperands.Operand, head: Int, piece: Int
  ) {
    let queryItems = kernel.queryHeadCount * kernel.querySurveyCount
    if item < queryItems {
      let (head, piece) = item.quotientAndRemainder(dividingBy: kernel.querySurveyCount)
      return (.query, operands.query, head, piece)
    }
    let keyItems = kernel.keyHeadCount * kernel.keySurveyCount
    let (index, isValue) =
      item - queryItems < keyItems
      ? (item - queryItems, false)
      : (item - queryItems - keyItems, true)
    let (head, piece) = index.quotientAndRemainder(dividingBy: kernel.keySurveyCount)
    return isValue ? (.value, operands.value, head, piece) : (.key, operands.key, head, piece)
  }

  /// The magnitude that an operand may not reach in this recipe.
  private func limit(_ tensor: InputCheck.Tensor) -> Float {
    switch tensor {
    case .query: InputCheck.limit(for: recipe.query)
    case .key: InputCheck.limit(for: recipe.key)
    case .value: InputCheck.limit(for: recipe.value)
    }
  }

  /// The first pass: sums for the means, magnitudes, and the check of every element.
  func survey() throws(AttentionError) {
    let count = kernel.surveyItemCount
    let (largest, firstBad) = unsafe (
      place(layout.largest), place(layout.firstBad, as: Int64.self)
    )
    forEachItem(count) { item, _ in
      let (tensor, operand, head, piece) = surveyed(item)
      let length = kernel.tileSizes.surveyLength
      let range = rows(ofPiece: piece, length: length, count: operand.shape[2])
      var arguments = unsafe intfa_survey()
      unsafe arguments.rows = rows(operand, head: head)
      unsafe arguments.begin = range.begin
      unsafe arguments.end = range.end
      unsafe arguments.dimension = Int32(operand.shape[3])
      unsafe arguments.limit = limit(tensor)
      unsafe arguments.block_sums = sums(tensor, head: head, piece: piece)
      unsafe arguments.largest = largest + item
      unsafe arguments.first_bad = firstBad + item
      if case .value = tensor, kernel.method.isTiled {
        unsafe arguments.rotates = recipe.rotatesValue
        unsafe arguments.row_maxima = place(layout.valueMaxima, head) + Int(range.begin)
      }
      unsafe kernels.survey(&arguments)
    }
    for item in 0..<count where unsafe firstBad[item] >= 0 {
      let (tensor, operand, head, _) = surveyed(item)
      let token = Int(unsafe firstBad[item])
      let (batch, index) = head.quotientAndRemainder(dividingBy: operand.shape[1])
      let row = (0..<operand.shape[3]).map { operand.view[batch, index, token, $0] }
      throw InputCheck.error(
        tensor,
        batch: batch,
        head: index,
        token: token,
        row: row[...],
        limit: limit(tensor)
      )
    }
    try InputCheck.requireLogits(
      largestQuery: (0..<kernel.queryHeadCount).reduce(0) {
        max($0, largestMagnitude(.query, head: $1))
      },
      largestKey: (0..<kernel.keyHeadCount).reduce(0) { max($0, largestMagnitude(.key, head: $1)) },
      descriptor: kernel.descriptor
    )
  }

  private func sums(_ tensor: InputCheck.Tensor, head: Int, piece: Int)
    -> UnsafeMutablePointer<Float>?
  {
    let offset =
      piece * (kernel.tileSizes.surveyLength / HeadRows.sumBlock) * shape.headDimension
    switch tensor {
    case .query where recipe.queryCentering == .head:
      return unsafe place(layout.querySums, head) + offset
    case .key where recipe.centersKey: return unsafe place(layout.keySums, head) + offset
    case .query, .key, .value: return nil
    }
  }

  /// The largest magnitude of one head, found by the survey.
  func largestMagnitude(_ tensor: InputCheck.Tensor, head: Int) -> Float {
    let pieces = tensor == .query ? kernel.querySurveyCount : kernel.keySurveyCount
    let queryItems = kernel.queryHeadCount * kernel.querySurveyCount
    let keyItems = kernel.keyHeadCount * kernel.keySurveyCount
    let first =
      switch tensor {
      case .query: head * pieces
      case .key: queryItems + head * pieces
      case .value: queryItems + keyItems + head * pieces
      }
    let largest = unsafe place(layout.largest)
    return (first..<first + pieces).reduce(0) { max($0, unsafe largest[$1]) }
  }

  // MARK: Means

  /// Block sums in order, divided by the count.
  func findMeans() {
    if recipe.queryCentering == .head {
      for head in 0..<kernel.queryHeadCount {
        let mean = unsafe place(layout.queryMeans, head)
        let rotated = unsafe place(layout.rotatedQueryMeans, head)
        unsafe findMean(place(layout.querySums, head), rows: shape.queryLength, into: mean)
        for channel in 0..<shape.headDimension { unsafe rotated[channel] = mean[channel] }
        if recipe.rotatesQueryAndKey { unsafe intfa_rotate(rotated, Int32(shape.headDimension)) }
      }
    }
    if recipe.centersKey {
      for head in 0..<kernel.keyHeadCount {
        unsafe findMean(
          place(layout.keySums, head),
          rows: shape.keyValueLength,
          into: place(layout.keyMeans, head)
        )
      }
    }
  }

  private func findMean(
    _ sums: UnsafeMutablePointer<Float>,
    rows: Int,
    into mean: UnsafeMutablePointer<Float>
  ) {
    let dimension = shape.headDimension
    let blocks = CPUTileSizes.pieceCount(rows, HeadRows.sumBlock)
    for channel in 0..<dimension {
      var sum: Float = 0
      for block in 0..<blocks {
        let part = unsafe sums[block * dimension + channel]
        sum = block == 0 ? part : sum + part
      }
      unsafe mean[channel] = rows > 0 ? sum / Float(rows) : 0
    }
  }

  // MARK: Codes

  /// Keys and values as the tile loop reads them: codes where the recipe has integers, packed.
  func pack() {
    let items = kernel.keyHeadCount * kernel.keyPieceCount
    forEachItem(2 * items) { item, seat in
      let isKey = item < items
      let (head, piece) = (isKey ? item : item - items)
        .quotientAndRemainder(dividingBy: kernel.keyPieceCount)
      switch (isKey, isKey ? kernel.method.hasIntegerScores : kernel.method.hasIntegerValues) {
      case (true, true): quantizeKeys(head: head, piece: piece, seat: seat)
      case (false, true): quantizeValues(head: head, piece: piece, seat: seat)
      case (_, false):
        let range = pieceRows(piece, of: shape.keyValueLength)
        unsafe packRunning(isKey ? .key : .value, head: head, range, codes: nil)
      }
    }
  }

  /// Codes and scales of one piece, and the bias of the query means for every query head.
  private func quantizeKeys(head: Int, piece: Int, seat: Int) {
    let (dimension, group) = (shape.headDimension, shape.groupSize)
    let range = pieceRows(piece, of: shape.keyValueLength)
    let begin = Int(range.begin)
    let codes = unsafe place(layout.codes, seat: seat, as: Int8.self)
    var arguments = unsafe intfa_quantize()
    unsafe arguments.rows = rows(operands.key, head: head)
    unsafe arguments.begin = range.begin
    unsafe arguments.end = range.end
    unsafe arguments.dimension = Int32(dimension)
    unsafe arguments.rotates = recipe.rotatesQueryAndKey
    if recipe.centersKey { unsafe arguments.mean = UnsafePointer(place(layout.keyMeans, head)) }
    unsafe arguments.codes = codes
    unsafe arguments.scales = place(layout.keyScales, head) + begin
    if recipe.queryCentering == .head {
      let float = MemoryLayout<Float>.size
      unsafe arguments.bias_count = Int32(group)
      unsafe arguments.bias_means = UnsafePointer(place(layout.rotatedQueryMeans, head * group))
      unsafe arguments.bias_mean_stride = Int64(layout.rotatedQueryMeans.stride / float)
      unsafe arguments.bias_factor = logitUnit
      unsafe arguments.biases = place(layout.biases, head * group)
      unsafe arguments.bias_stride = Int64(layout.biases.stride / float)
      // A cap comes between; then the tile loop adds what the scales of the values do to the logits.
      if kernel.method.isTiled, kernel.descriptor.options.softcap == nil {
        unsafe arguments.bias_addend = UnsafePointer(place(layout.folds, head))
      }
    }
    unsafe kernels.quantize(&arguments)
    guard kernel.method.isTiled else {
      unsafe packRunning(.key, head: head, range, codes: codes)
      return
    }
    var packing = unsafe packing(codes, range, dimension, layout.keyCodes, head: head)
    unsafe packing.int4 = kernel.method.hasInt4Key
    unsafe kernels.pack_keys(&packing)
  }

  /// INT8 codes of rows `range` of a head, to be packed into its part of a region.
  func packing(
    _ codes: UnsafeMutablePointer<Int8>,
    _ range: (begin: Int64, end: Int64),
    _ dimension: Int,
    _ region: Region,
    head: Int
  ) -> intfa_pack {
    var packing = unsafe intfa_pack()
    unsafe packing.codes = UnsafePointer(codes)
    unsafe packing.begin = range.begin
    unsafe packing.end = range.end
    unsafe packing.dimension = Int32(dimension)
    unsafe packing.target = UnsafeMutableRawPointer(place(region, head, as: UInt8.self))
    return unsafe packing
  }
}
